"""An OpenAI-compatible server of one model, plain or guided; and the page on which people code a gold sample.

`guard.Guard` keeps foreign web pages and strangers out of any server of ours; it needs neither torch nor FastAPI.
"""

"""`vllm.v1.engine.exceptions`."""


class EngineGenerateError(Exception):
    pass


class EngineDeadError(Exception):
    pass

def test_x(recipe, consilience, tmp_path, world):
    import time,json
    r = recipe()
    t=time.time()
    a = consilience("fuse", r, "--out", tmp_path / "run", "--json")
    tt=(time.time()-t)
    t=time.time()
    b = consilience("fuse", r, "--out", tmp_path / "run", "--json")
    tt=(time.time()-t)
    print(json.load(open(tmp_path/'run/results.json'))['seconds'])
    for n,m in a.json['models'].items(): print(n, m['nll']['value'])
    import json,glob
    for q in glob.glob(str(tmp_path/"run/align/*/quality.json")):
        d=json.load(open(q)); print(sum(d["matched"])/sum(d["positions"]), d["examples"][0])
    for q in glob.glob(str(tmp_path/"run/select/*/teachers.json")):
        print(json.load(open(q))["conversations"])
    assert 0

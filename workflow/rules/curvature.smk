rule curvature:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        f"{RUN}/curvature.json",
    log:
        f"{RESULTS}/logs/curvature/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/curvature/{{run}}.tsv"
    threads: threads_of
    params:
        study=STUDY.path,
        digest=curvature_digest,
    message:
        "curvature of {wildcards.run}"
    shell:
        "python -m sat_core curvature --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"

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
    group:
        sharing
    conda:
        "../../envs/sat-core.yaml"
    threads: threads_of
    resources:
        mem_mb=memory_of,
        runtime=evaluation_minutes,
        gres=gpu_of,
    params:
        study=STUDY.path,
        digest=curvature_digest,
    message:
        "curvature of {wildcards.run}"
    shell:
        "exec python -m sat_core curvature --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"

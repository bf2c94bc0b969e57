rule landscape:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        f"{RUN}/landscape.npz",
    log:
        f"{RESULTS}/logs/landscape/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/landscape/{{run}}.tsv"
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
        digest=landscape_digest,
    message:
        "landscape of {wildcards.run}"
    shell:
        "exec python -m sat_core landscape --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"

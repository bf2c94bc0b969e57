rule train:
    input:
        dataset_record,
    output:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
        f"{RUN}/history.csv",
    log:
        f"{RESULTS}/logs/train/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{run}}.tsv"
    priority: 1  # the longest jobs first: else one of them may be left alone at the end
    group:
        sharing
    conda:
        "../../envs/sat-core.yaml"
    threads: threads_of
    resources:
        mem_mb=memory_of,
        runtime=training_minutes,
        gres=gpu_of,
    params:
        study=STUDY.path,
        digest=run_digest,
    message:
        "train {wildcards.run}"
    shell:
        "exec python -m sat_core train --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"

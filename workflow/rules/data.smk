rule data:
    output:
        f"{RESULTS}/data/{{dataset}}.json",
        f"{RESULTS}/data/{{dataset}}.safetensors",
    log:
        f"{RESULTS}/logs/data/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/{{dataset}}.tsv"
    params:
        study=STUDY.path,
        digest=dataset_digest,
    message:
        "data of {wildcards.dataset}"
    shell:
        "python -m sat_core data --study {params.study:q} --dataset {wildcards.dataset:q} > {log:q} 2>&1"

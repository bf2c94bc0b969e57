rule data:
    input:
        lambda wildcards: study() and [],
    output:
        f"{RESULTS}/data/{{dataset}}.json",
        f"{RESULTS}/data/{{dataset}}.safetensors",
    log:
        f"{RESULTS}/logs/data/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/{{dataset}}.tsv"
    localrule: True  # nodes of a cluster often cannot reach the internet
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY_FILE,
    message:
        "data of {wildcards.dataset}"
    shell:
        "exec python -P -m sat_core data --study {params.study:q} --dataset {wildcards.dataset:q} > {log:q} 2>&1"

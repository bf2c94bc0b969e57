# Seconds each; a job with many inputs in a group would make planning quadratic. What is `used` does not inherit it.
localrules:
    table,
    compare,
    figure,
    report,


rule table:
    input:
        lambda wildcards: sat.results_of(study(), wildcards.table, "train", "evaluate"),
    output:
        [f"{RESULTS}/tables/{{table}}{part}{suffix}" for part in PARTS for suffix in (".md", ".csv", ".tex")],
        [
            report(
                f"{RESULTS}/tables/{{table}}{part}.html",
                caption="../report/table.rst",
                category="Tables",
                labels={"table": f"{{table}}{part}"},
            )
            for part in PARTS
        ],
    log:
        f"{RESULTS}/logs/table/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/table/{{table}}.tsv"
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY_FILE,
        verb="table --table {table}",
    message:
        "table {wildcards.table}"
    shell:
        "exec python -P -m sat_core {params.verb} --study {params.study:q} > {log:q} 2>&1"


use rule table as compare with:
    output:
        multiext(f"{RESULTS}/tables/{{table}}{COMPARISONS}", ".md", ".csv", ".tex"),
        report(
            f"{RESULTS}/tables/{{table}}{COMPARISONS}.html",
            caption="../report/comparisons.rst",
            category="Tables",
            labels={"table": f"{{table}}{COMPARISONS}"},
        ),
    log:
        f"{RESULTS}/logs/compare/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare/{{table}}.tsv"
    params:
        study=STUDY_FILE,
        verb="compare --table {table}",
    message:
        "comparisons of {wildcards.table}"


use rule table as figure with:
    input:
        lambda wildcards: sat.results_of(study(), wildcards.table, FIGURES[wildcards.kind].stage),
    output:
        report(
            f"{RESULTS}/figures/{{table}}-{{kind}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"table": "{table}", "figure": "{kind}"},
        ),
        f"{RESULTS}/figures/{{table}}-{{kind}}.pdf",
        f"{RESULTS}/figures/{{table}}-{{kind}}.csv",
    log:
        f"{RESULTS}/logs/figure/{{table}}-{{kind}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure/{{table}}-{{kind}}.tsv"
    params:
        study=STUDY_FILE,
        verb="figure --table {table} --kind {kind}",
        caption=lambda wildcards: FIGURES[wildcards.kind].caption,
    message:
        "figure {wildcards.kind} of {wildcards.table}"


use rule table as report with:
    input:
        lambda wildcards: sat.targets(study()),
    output:
        report(f"{RESULTS}/report.html", caption="../report/report.rst", category="Report"),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    params:
        study=STUDY_FILE,
        verb="report",
    message:
        "report"

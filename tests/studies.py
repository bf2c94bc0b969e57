"""What tests share that is no fixture."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

TINY = {
    "tables": {
        "digits": {
            "dataset": "digits",
            "models": ["cnn"],
            "defenses": ["madry", "psat"],
            "epsilons": [0.3],
            "seeds": [0],
        }
    },
    "overrides": [
        {
            "set": {
                "training": {"epochs": 2, "milestones": [1]},
                "attack": {"steps": 2},
                "evaluation": {"images": 12},
            }
        },
        {"where": {"defense": "psat"}, "set": {"options": {"curriculum": {"kind": "steps", "epochs": [0, 1]}}}},
    ],
}


def run_epoch(trainer) -> None:
    """One whole epoch of a Trainer."""
    for _ in trainer.steps():
        pass
    trainer.finish_epoch()

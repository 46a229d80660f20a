"""The table of an experiment."""

import itertools
import statistics

from longtail.evaluation.flops import cost
from longtail.experiments.table import agreement, markdown, numbers


def entry(name, values, published=None, routed=None):
    """A row with one overall accuracy for each seed."""
    empty = dict.fromkeys(("balanced", "many", "medium", "few", "ece", "routed_macs", "seconds"))
    seeds = [empty | {"seed": seed, "overall": value, "macs": 1.5e9} for seed, value in enumerate(values)]
    mean = empty | {"overall": statistics.mean(values), "macs": 1.5e9, "routed": routed}
    std = dict.fromkeys(mean) | {"overall": statistics.stdev(values) if len(values) > 1 else None}
    definition = {"recipe": name, "settings": {}, "note": "", "published": published}
    return {"name": name, "seeds": seeds, "mean": mean, "std": std, **definition}


def test_agreement_counts_pairs_in_the_published_order():
    measured, published = [0.3, 0.5, 0.4, 0.2], [39.0, 42.0, 48.0, 39.0]
    entries = [entry(str(i), [measured[i]], {"overall": published[i]}) for i in range(4)]
    entries += [entry("unknown", [0.9]), entry("routed", [0.1], {"routed": 50.0}, routed=0.6)]
    measured, published = [*measured, 0.6], [*published, 50.0]
    pairs = [(i, j) for i, j in itertools.product(range(5), repeat=2) if published[i] < published[j]]
    assert agreement(entries) == (sum(measured[i] < measured[j] for i, j in pairs), len(pairs))
    assert agreement([]) == (0, 0)


def test_markdown():
    packages = {"longtail": "1", "torch": "2"}
    environment = {"device": "cpu", "device_name": "A CPU", "threads": 2, "packages": packages}
    rows = [entry("a", [0.1, 0.2, 0.3]), entry("b", [0.25, 0.75])]
    table = {"title": "T", "command": "c", "seeds": [0, 1, 2], "rows": rows}
    table["environments"] = [environment, environment | {"python": "3"}, environment | {"threads": 1}]
    table["settings"] = {"training": {"epochs": 40}, "seed": 1}
    text = markdown(table)
    assert "`training.epochs: 40`, `seed: 1`" in text
    assert "`training.epochs" not in markdown(table | {"settings": {}})
    assert "seeds 0, 1, 2" in text
    assert "| a | 20.0 ± 10.0 |" in text
    assert "| b (2 of 3 seeds) | 50.0 ± 35.4 |" in text
    assert "| 1.50 G |" in text
    assert "\nA CPU, 2 threads, longtail 1, torch 2; A CPU, 1 thread, longtail 1, torch 2." in text
    assert "pairs of rows" not in text
    rows = [entry("a", [0.1], {"overall": 1}), entry("b", [0.2], {"overall": 3}), entry("c", [0.3], {"overall": 2})]
    assert "2 of 3 pairs of rows" in markdown(table | {"rows": rows, "seeds": [0]})


def test_names_are_not_markup():
    table = {"title": "a\n# b", "command": "c", "seeds": [0], "rows": [entry("[x](http://y)|z", [0.1])]}
    text = markdown(table | {"environments": [], "settings": {}})
    assert "\n# b" not in text
    assert "- [x](" not in text


def test_numbers_of_a_run(digits_run):
    found, results = numbers(digits_run), digits_run.results()["test"]
    model, metadata = digits_run.load_model()
    assert found["macs"] == cost(model, metadata.image_size).total
    assert (found["overall"], found["few"], found["ece"]) == (results["accuracy"], results["few"], results["ece"])
    assert (found["routed"], found["routed_macs"]) == (results["routing"]["accuracy"], results["routing"]["cost"])
    assert found["seconds"] == digits_run.environment()["training_seconds"]

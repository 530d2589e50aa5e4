import pytest

from harness.declare.card import load_card, parse_card
from harness.errors import LitmusError

RATIO = "estimate: {ratio: loss, of: method, to: baseline}"


def refusal_of(text):
    with pytest.raises(LitmusError) as caught:
        parse_card(text, "suites/x/y/card.yaml")
    refusal = caught.value
    assert refusal.exit_code == 2
    assert "card.yaml" in str(refusal.where), "names the file"
    assert refusal.expected, "says what was expected"
    assert refusal.next_step, "says what to do next"
    assert "expected" not in refusal.expected.split()[0], "the word is printed by the label"
    return refusal


def test_a_good_card_is_read_with_its_arithmetic(card_text):
    card = parse_card(card_text, "card.yaml")
    assert card.claim_ids == ["better", "parts"]
    assert card.experiments["quality"].axes == {"n": [16, 64], "mode": ["fast", "slow"]}
    assert [part.experiment for part in card.claims[1].resolved_parts()] == ["quality", "pace"]
    assert card.claims[1].resolved_parts()[0].rule() == ("inside [-0.1, 0.1]", "outside [-0.1, 0.1]")


def test_profiles_change_what_they_name_and_nothing_else(card_text):
    quality = parse_card(card_text, "card.yaml").experiments["quality"]
    smoke, small, full = (quality.in_profile(name) for name in ("smoke", "small", "full"))
    assert (smoke.axes["n"], smoke.axes["mode"], smoke.seeds) == ([16], ["fast", "slow"], 1)
    assert small == quality
    assert (full.axes["n"], full.seeds) == ([16, 64, 256], 5)
    assert parse_card(card_text, "card.yaml").experiments["pace"].in_profile("smoke") is None


def test_a_profile_may_change_the_limits(card_text):
    text = card_text.replace("seeds: 1}\n", "seeds: 1, timeout_s: 7, memory_gib: 12}\n", 1)
    quality = parse_card(text, "card.yaml").experiments["quality"]
    smoke, small = quality.in_profile("smoke"), quality.in_profile("small")
    assert (smoke.timeout_s, smoke.memory_gib) == (7, 12)
    assert (small.timeout_s, small.memory_gib) == (quality.timeout_s, quality.memory_gib) != (7, 12)


def test_smoke_without_an_override_takes_one_value_and_one_seed(card_text):
    text = card_text.replace("      smoke: {axes: {n: [2**4]}, seeds: 1}\n", "")
    smoke = parse_card(text, "card.yaml").experiments["quality"].in_profile("smoke")
    assert (smoke.axes, smoke.seeds) == ({"n": [16], "mode": ["fast"]}, 1)


# what is written wrong -> (old text, new text, key, value, a word of what was expected)
MISTAKES = {
    "unknown key at the top": ("version: 1", "versoin: 2\nversion: 1", "versoin", "versoin", "'version'"),
    "unknown key of an experiment": ("    seeds: 5", "    sedes: 5", "experiments.quality.sedes", "sedes", "'seeds'"),
    "unknown key of a claim": (
        "    statement: It is better.",
        "    statement: x\n    refuted: y",
        "claims[better].refuted",
        "refuted",
        "'refuted_if'",
    ),
    "unknown key of an estimate": (
        RATIO,
        "estimate: {ratio: loss, of: method, too: baseline}",
        "claims[better].estimate.too",
        "too",
        "'to'",
    ),
    "unknown key of an override": (
        "smoke: {axes: {n: [2**4]}",
        "smoke: {axis: {n: [2**4]}",
        "experiments.quality.profiles.smoke.axis",
        "axis",
        "'axes'",
    ),
    "unknown kind of estimate": (
        RATIO,
        "estimate: {ration: loss, of: method}",
        "claims[better].estimate",
        "ration, of",
        "ratio",
    ),
    "a key left out": ("version: 1\n", "", "version", None, "this key"),
    "an arm that does not exist": (
        RATIO,
        "estimate: {ratio: loss, of: methd, to: baseline}",
        "claims[better].estimate",
        "methd",
        "'method'",
    ),
    "a metric that does not exist": (
        RATIO,
        "estimate: {ratio: los, of: method, to: baseline}",
        "claims[better].estimate",
        "los",
        "'loss'",
    ),
    "an experiment that does not exist": (
        "    experiment: quality\n    where",
        "    experiment: qualty\n    where",
        "claims[better]",
        "qualty",
        "'quality'",
    ),
    "an axis that does not exist": (
        "where: {mode: fast}",
        "where: {mood: fast}",
        "claims[better].where",
        "mood",
        "'mode'",
    ),
    "a value the axis never takes": ("where: {mode: fast}", "where: {n: 2**5}", "claims[better].where.n", 32, "64"),
    "an arm of an override": (
        "smoke: {axes: {n: [2**4]}",
        "smoke: {arms: [metod]",
        "experiments.quality.profiles.smoke.arms",
        "metod",
        "'method'",
    ),
    "a tuned metric": ("metric: loss", "metric: lost", "experiments.quality.tune.metric", "lost", "'loss'"),
    "code instead of a number": (
        "[2**4, 2**6]",
        "[\"__import__('os')\"]",
        "experiments.quality.axes.n[item 1]",
        "__import__('os')",
        "arithmetic",
    ),
    "a kind misspelt": ("kind: trial", "kind: trail", "experiments.quality.kind", "trail", "'trial'"),
    "a profile misspelt": ("      full: {", "      fool: {", "experiments.quality.profiles.fool", "fool", "'full'"),
    "a skip misspelt": ("smoke: skip", "smoke: skipp", "experiments.pace.profiles.smoke", "skipp", "'skip'"),
    "text that is no number": ("year: 2024", "year: soon", "paper.year", "soon", "integer"),
    "a number that is no text": ('arxiv: "2001.04438"', "arxiv: 2001.04438", "paper.arxiv", 2001.04438, "text"),
    "one name instead of a list": (
        "arms: [method, baseline]",
        "arms: method",
        "experiments.quality.arms",
        "method",
        "list",
    ),
    "a rule that is no condition": (
        'supported_if: "< 0.9"',
        "supported_if: better",
        "claims[better].supported_if",
        "better",
        "'> x'",
    ),
    "a rule without its sign": (
        'supported_if: "< 0.9"',
        "supported_if: 0.9",
        "claims[better].supported_if",
        0.9,
        "'> x'",
    ),
    "half a rule": ('    refuted_if: "> 1.0"\n', "", "claims[better]", None, "both"),
    "a rule that holds both ways": (
        'refuted_if: "> 1.0"',
        'refuted_if: "> 0.8"',
        "claims[better]",
        "< 0.9 and > 0.8",
        "no interval",
    ),
    "a claim that cannot be refuted": (
        'refuted_if: "> 1.0"',
        'refuted_if: "< 0"',
        "claims[better]",
        "< 0",
        "can reach",
    ),
    "a claim with a test and parts": ("    parts:", f"    {RATIO}\n    parts:", "claims[parts]", None, "either"),
    "a claim id that is no name": ("id: better", "id: Much Better", "claims[Much Better].id", "Much Better", "name"),
    "the same arm twice": (
        "arms: [method, baseline]\n    axes: {n: [2**4",
        "arms: [method, method, baseline]\n    axes: {n: [2**4",
        "experiments.quality",
        "method",
        "once",
    ),
    "a limit of no hyperparameter": (
        "baseline: {lr: [0.1, 0.2]}}",
        "baseline: {lr: [0.1, 0.2]}}\n      limits: {rl: [0, 1]}",
        "experiments.quality.tune.limits",
        "rl",
        "'lr'",
    ),
    "a winner of no search": (
        "    seeds: 5",
        "    seeds: 5\n    tuned_from: {method: quality:metod}",
        "experiments.quality.tuned_from",
        "quality:metod",
        "quality:method",
    ),
    "grids of unequal size": (
        "baseline: {lr: [0.1, 0.2]}",
        "baseline: {lr: [0.1]}",
        "experiments.quality",
        "method: 2, baseline: 1",
        "as many trials",
    ),
    "an axis with a reserved name": ("mode: [fast, slow]", "seed: [1, 2]", "experiments.quality", "seed", "other than"),
    "an axis without values": ("mode: [fast, slow]", "mode: []", "experiments.quality", None, "one value"),
    "a trial without metrics": (
        "    metrics:\n      loss: {better: lower}\n      curve: {series: true}\n",
        "",
        "experiments.quality",
        None,
        "numbers",
    ),
    "a band without width": (
        "within: 0.1",
        "within: 0",
        "claims[parts].parts[item 1].estimate.within",
        0,
        "greater than 0",
    ),
    "an infinite value": ("[2**4, 2**6]", "[.inf]", "experiments.quality.axes.n[item 1]", float("inf"), "number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_by_key_value_and_expectation(card_text, mistake):
    old, new, key, value, expected = MISTAKES[mistake]
    assert old in card_text, "the mistake is made where it is meant"
    refusal = refusal_of(card_text.replace(old, new, 1))
    assert refusal.key == key
    assert refusal.value == value
    assert expected in refusal.expected


def test_a_comma_of_best_that_yaml_took_for_its_own_is_explained(card_text):
    refusal = refusal_of(card_text.replace('"best(method, baseline)"', "best(method, baseline)"))
    assert refusal.value == "baseline)" and "quotes" in refusal.next_step


def test_further_mistakes_are_counted(card_text):
    refusal = refusal_of(card_text.replace("seeds: 5", "sedes: 5").replace("year: 2024", "year: soon"))
    assert "1 more problem in this file" in refusal.next_step


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("paper: {title: x", "not valid YAML"),
        ("a: 1\na: 2", "not valid YAML"),
        ("- a", "not a mapping"),
        ("", "not a mapping"),
        ("? [a]\n: 1", "not valid YAML"),
        ("paper: !!python/object:os.system {}", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(text, problem):
    assert problem in refusal_of(text).problem


def test_bad_yaml_names_line_and_column():
    assert str(refusal_of("version: 1\npaper: {title: x\nversion: 2").where).startswith("suites/x/y/card.yaml:")
    assert "'version' is given twice" in str(refusal_of("version: 1\nversion: 2"))


def test_a_mapping_may_take_over_another_and_say_more(card_text):
    text = card_text.replace("    seeds: 5", "    seeds: 5\n    measure: &few {rounds: 3, processes: 2}", 1)
    text = text.replace("  pace:\n", "  pace:\n    measure: {<<: *few, rounds: 5}\n", 1)
    measure = parse_card(text, "card.yaml").experiments["pace"].measure
    assert (measure.rounds, measure.processes) == (5, 2)
    assert "'a' is given twice" in str(refusal_of("x: &x {b: 1}\ny: {<<: *x, a: 1, a: 2}"))
    bomb = "a0: &a0 {k: 1}\n" + "".join(
        f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9))
    assert "too many keys" in str(refusal_of(bomb))


def test_a_card_that_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_bytes(b"\xff\xfe\x00p")
    for bad in (path, tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(LitmusError) as caught:
            load_card(bad)
        assert caught.value.where == bad and caught.value.next_step


@pytest.mark.parametrize(
    ("condition", "kept"), [('">= 4*llc"', ">= 4*llc"), ("[fast, slow]", ["fast", "slow"]), ("slow", "slow")]
)
def test_where_takes_values_lists_and_conditions(card_text, condition, kept):
    axis = "n" if "llc" in condition else "mode"
    card = parse_card(card_text.replace("where: {mode: fast}", f"where: {{{axis}: {condition}}}"), "card.yaml")
    assert card.claims[0].where == {axis: kept}

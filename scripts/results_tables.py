"""benchmarks/results/*.json -> the tables that `update_docs.py` writes into the pages."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def quickstart() -> str:
    """Accuracy before and after, per seed."""
    result = _result("quickstart")
    rows = [
        f"| {run['seed']} | {run['before']:.3f} | {run['after']:.3f} | "
        f"{run['after'] - run['before']:+.3f} | {run['seconds']:.0f} |"
        for run in result["runs"]
    ]
    head = ["| seed | held-out accuracy before | after | gain | seconds |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", _source(result)])


def quickstart_gain() -> str:
    """The quickstart in one sentence."""
    runs = _result("quickstart")["runs"]
    before, after = ([run[key] for run in runs] for key in ("before", "after"))
    minutes = sum(run["seconds"] for run in runs) / len(runs) / 60
    return (
        f"On {len(runs)} seeds the accuracy on held-out problems goes from {min(before):.2f}–"
        f"{max(before):.2f} to {min(after):.2f}–{max(after):.2f}, in about {minutes:.0f} minutes "
        "on one CPU core."
    )


def memory() -> str:
    """Predicted peaks of the card recipe; measured ones where the benchmark has run."""
    lines = ["| card | model | prompt + completion | predicted peak |", "|---|---|---|---|"]
    estimated = _result("memory_estimated")
    for row in estimated["rows"]:
        lines.append(
            f"| {row['card_gb']} GB | {row['shape']} | 512 + {row['max_completion_length']} | "
            f"{row['predicted_gib']:.1f} GiB (estimated) |"
        )
    with_critic = "a critic network beside (`value_model_path: policy`), reference included. "
    lines += ["", "`recipes/card.yaml` with " + with_critic + _source(estimated)]
    if (RESULTS / "memory_cpu.json").is_file():
        lines += ["", *_memory_on_cpu(_result("memory_cpu"))]
    if (RESULTS / "memory_logits.json").is_file():
        lines += ["", _memory_of_logits(_result("memory_logits"))]
    return "\n".join(lines)


def _memory_on_cpu(result: dict) -> list[str]:
    """SmolLM2: peaks, how far the prediction is off, and what the critic costs."""
    rows = {row["name"]: row for row in result["rows"]}
    lines = [
        "| SmolLM2-135M, LoRA r=8, CPU | peak resident | of it, above start | predicted | s/step |",
        "|---|---|---|---|---|",
    ]
    for row in rows.values():
        error = row["predicted_gib"] / row["above_start_gib"] - 1
        lines.append(
            f"| {row['name']} | {row['peak_gib']:.2f} GiB | {row['above_start_gib']:.2f} GiB | "
            f"{row['predicted_gib']:.2f} GiB ({error:+.0%}) | {row['seconds']['median']:.1f} |"
        )
    costs = []
    for bits in ("bf16", "4-bit"):
        with_critic, without = (rows.get(f"{bits}, {c}") for c in ("shared critic", "no critic"))
        if with_critic and without:
            memory = with_critic["peak_gib"] / without["peak_gib"]
            seconds = with_critic["seconds"]["median"] / without["seconds"]["median"]
            costs.append(f"{bits}: {memory:.2f} × the memory, {seconds:.2f} × the time")
    lines += ["", "32 completions of 96 tokens a step behind prompts of 50. The critic costs, in "]
    lines[-1] += "; ".join(costs) + ". " + _source(result)
    return lines


def _memory_of_logits(result: dict) -> str:
    largest = max(
        (row for row in result["rows"] if row["whole_gib"] is not None),
        key=lambda row: (row["tokens"], row["vocab_size"]),
    )
    same = [r for r in result["rows"] if r["vocab_size"] == largest["vocab_size"]]
    least, most = min(r["chunked_gib"] for r in same), max(r["chunked_gib"] for r in same)
    return (
        f"Log-probs with their gradient over a vocabulary of {largest['vocab_size']:,}: from "
        f"{same[0]['tokens']} to {same[-1]['tokens']} tokens the chunks take {least:.2f} to "
        f"{most:.2f} GiB; whole logits of {largest['tokens']} tokens take "
        f"{largest['whole_gib']:.2f}. {_source(result)}"
    )


def smollm2() -> str:
    result = _result("smollm2")
    return (
        f"{result['steps']} steps of SmolLM2-135M (`recipes/smollm2.yaml`, 8 completions of up to "
        "32 tokens a step, LoRA policy and critic on one base) took "
        f"{result['seconds']:.0f} s, start included, and {result['peak_gib']:.1f} GiB of memory at "
        f"the peak. {_source(result)}"
    )


def _accuracy(row: dict) -> str:
    return f"{row['final_accuracy']:.3f}" + _shown(" ± {:.3f}", row["final_standard_error"])


def learning() -> str:
    """Ways to assign credit, per task."""
    result = _result("learning")
    lines = []
    for task, rows in result["tasks"].items():
        lines += [
            f"| {task} | seeds | final accuracy | Δ mean accuracy to GRPO mode (p) | samples to "
            "GRPO mode's end | to ¾ of its gain | CPU seconds | accuracy when TRL's time is up | "
            "EV |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(rows, key=lambda row: -row["final_accuracy"]):
            lines.append(_learning_row(row))
        lines.append("")
    return "\n".join([*lines, _source(result)])


CHOICES = {
    "spo_value_mean": "`segment_value: mean`",
    "spo_value_last": "`segment_value: last`",
    "spo_token_level": "`advantage_level: token`",
    "spo_lam90": "`lam: 0.9`",
    "spo_lam95": "`lam: 0.95`",
    "spo_lam100": "`lam: 1.0`",
    "spo_normalized": "`normalize_advantages: true`",
    "spo_no_features": "`value_features: none`",
    "spo_8_generations": "`num_generations: 8`",
}
"""Modes of benchmarks/learning.py that change one thing of `spo_p20`."""


def choices() -> str:
    """What changing one thing of SPO does to its accuracy."""
    tasks = _result("learning")["tasks"]
    found = {
        task: {row["mode"]: row["against_spo"] for row in rows if row["mode"] in CHOICES}
        for task, rows in tasks.items()
    }
    columns = [task for task, of_task in found.items() if any(of_task.values())]
    lines = [
        f"| one thing changed | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for mode, words in CHOICES.items():
        tests = [found[task].get(mode) for task in columns]
        cells = [f"{_difference(test)} ({test['seeds']})" if test else "" for test in tests]
        if any(cells):
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(form: str, value) -> str:
    return "" if value is None else form.format(value)


def _difference(test: dict) -> str:
    """Mean ± standard error, where there is one."""
    return f"{test['mean']:+.3f}" + _shown(" ± {:.3f}", test["standard_error"])


def _learning_row(row: dict) -> str:
    against = row["against_grpo"]
    compared = _difference(against) + _shown(" ({:.3f})", against["p"])
    cells = (
        row["mode"],
        str(len(row["seeds"])),
        _accuracy(row),
        "–" if row["mode"] == row["baseline"] else compared,
        _shown("{:.2f} ×", row["samples_ratio"]) or "not reached",
        _shown("{:.2f} ×", row["early_samples_ratio"]) or "not reached",
        f"{row['cpu_seconds']:.0f}",
        _shown("{:.3f}", row["at_trl_seconds"]) or "–",
        _shown("{:.2f}", row["explained_variance"]) or "–",
    )
    return f"| {' | '.join(cells)} |"


def gradients() -> str:
    """Signal to noise per mode, and the critic against Monte Carlo values."""
    result = _result("gradients_chain_sum")
    rows = {row["mode"]: row for row in result["rows"]}
    lines = [
        f"| gradient of {result['shape']['batch_size']} completions | signal to noise | "
        "over GRPO's | cosine to the unbiased one | gain of an Adam step over GRPO's |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio, gain = (row[key] / rows["grpo"][key] for key in ("signal_to_noise", "adam_gain"))
        cosine = "–" if row["cosine"] is None else f"{row['cosine']:.2f}"
        lines.append(
            f"| {name} | {row['signal_to_noise']:.3f} | {ratio:.1f} × | {cosine} | {gain:.2f} × |"
        )
    values = result["values"]
    lines += [
        "",
        f"At {values['states']} segment starts, against the mean reward of "
        f"{values['continuations']} sampled continuations: the critic's values correlate "
        f"{values['correlation']:.2f} (rms error {values['rms_error']:.2f}), the group means that "
        f"GRPO subtracts {values['group_mean_correlation']:.2f} "
        f"({values['group_mean_rms_error']:.2f}). {_source(result)}",
    ]
    return "\n".join(lines)


def breakdowns() -> str:
    """First mistakes with and without a KL penalty."""
    result = _result("breakdowns")
    runs = result["runs"]
    heads = [f"β = {run['beta']}: wrong sum | lost its place" for run in runs]
    lines = [f"| update | {' | '.join(heads)} |", "|---|" + "---|---|" * len(runs)]
    for of_all in zip(*(run["mistakes"] for run in runs), strict=True):
        shares = [count["shares"] for count in of_all]
        cells = [f"{s.get(kind, 0.0):.1%}" for s in shares for kind in ("sum", "place")]
        lines.append(f"| {of_all[0]['update']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(result)])


def speed() -> str:
    """A step against TRL's, where many completions share a prompt and where few do."""
    names = ("speed_smollm2", "speed_smollm2_pairs")
    found = [_result(name) for name in names if (RESULTS / f"{name}.json").is_file()]
    return "\n\n".join(map(_speed_table, found))


def _speed_table(result: dict) -> str:
    summary, shape = result["summary"], result["shape"]
    shared = shape.get("generations", 8)
    lines = [
        f"| {shape['model']}, {shape['completions']} × {shape['length']} tokens, {shared} of a "
        "prompt | s/step | generate | score | update | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    names = {
        "spo": "SPO, critic network",
        "spo_path": "SPO, critic of features",
        "grpo": "SPO without (GRPO mode)",
        "trl": "TRL's Transformers backend",
    }
    for key, name in names.items():
        row = summary[key]
        phases = " | ".join(f"{row['phases'][p]['median']:.1f}" for p in row["phases"])
        lines.append(
            f"| {name} | {row['seconds']['median']:.1f} | {phases} | "
            f"{row['peak_gib']['median']:.1f} GiB |"
        )
    over_trl = {names[key]: summary[f"{key}_over_trl"] for key in ("spo", "spo_path")}
    ratios = "; ".join(
        f"{name} {_spread(ratio['seconds'])} of the time, {_spread(ratio['peak'])} of the memory"
        for name, ratio in over_trl.items()
    )
    lines += ["", f"Over TRL, pair by pair (least, median, most): {ratios}. {_source(result)}"]
    return "\n".join(lines)


def _spread(values: dict) -> str:
    return f"{values['min']:.2f}, {values['median']:.2f}, {values['max']:.2f} ×"


def update() -> str:
    """Micro-batches of similar length against padding, and against the hardware."""
    result = _result("update")
    flops = result["flops"]
    side = result["settings"].get("product_size", 2048)
    other = "update_trl" if (RESULTS / "update_trl.json").is_file() else "update"
    return (
        f"The policy's update alone, {result['settings']['completions']} completions of 1/6 to all "
        f"of {result['settings']['max_completion_length']} tokens: "
        f"{_spread(result['time_ratio']['wall'])} of the time of micro-batches padded to the "
        f"longest of all (least, median, most), {result['memory_ratio']:.2f} × the memory. "
        f"{_over_trl(_result(other))}Its "
        f"matrix products come at {flops['update_gflops_per_second']['median']:.0f} GFLOP/s, a "
        f"plain {side} × {side} one at {flops['product_gflops_per_second']['median']:.0f}: "
        f"{flops['fraction']['median']:.0%} of what the hardware gives. {_source(result)}"
    )


def _over_trl(result: dict) -> str:
    """Beside TRL's log-probs, where TRL was there."""
    if "over_trl" not in result:
        return ""
    ratio, settings = result["over_trl"], result["settings"]
    return (
        f"Beside TRL's own chunked log-probs, {settings['completions']} completions of up to "
        f"{settings['max_completion_length']} tokens: {_spread(ratio['seconds']['cpu'])} of the "
        f"processor time, {ratio['memory']:.2f} × the memory {_source(result)}. "
    )


def scaling() -> str:
    """Seconds of a step along each curve."""
    result = _result("scaling")
    shape = result["shape"]
    lines = [
        f"A step with a critic, {shape['layers']} layers of random weights; otherwise "
        f"{shape['completions']} completions of {shape['length']} tokens and a vocabulary of "
        f"{shape['vocabulary']:,}.",
        "",
        "| | seconds at each size | exponent (1 is linear) |",
        "|---|---|---|",
    ]
    for name, found in result["curves"].items():
        points = ", ".join(f"{p[name]:,}: {p['seconds']['median']:.1f}" for p in found["points"])
        lines.append(f"| {name} | {points} | {found['exponent']:.2f} |")
    credit = result["credit"]
    lines += [
        "",
        f"Boundaries, GAE, returns and normalisation of {credit['completions']} × "
        f"{credit['length']} tokens take {credit['phases']['credit']['median']:.2f} s: "
        f"{result['credit_share']:.2%} of a step of a model of one layer. {_source(result)}",
    ]
    return "\n".join(lines)


def engines() -> str:
    """Speed of each engine, and how far its log-probs are from the trainer's."""
    lines = [
        "| model | engine | tokens/s | difference, mean | largest |",
        "|---|---|---|---|---|",
    ]
    sources = []
    for name in ("engines", "engines_bfloat16"):
        if not (RESULTS / f"{name}.json").exists():
            continue
        result = _result(name)
        lines += [
            f"| {result['shape']} | {row['engine']} | {row['tokens_per_second']['median']:,.0f} | "
            f"{row['logprob_difference_mean']:.1e} | {row['logprob_difference_max']:.1e} |"
            for row in result["rows"]
        ]
        load = result["machine"]["load_average"]
        sources.append(f"{_source(result)} <sub>load average {load}</sub>")
    if not sources:
        return "Tokens per second: `python benchmarks/engines.py`; no figures are published yet."
    return "\n".join([*lines, "", *sources])


def decoding() -> str:
    """A step of one token by plain functions, against the model's modules."""
    result = _result("decoding")
    lines = [
        "| model | time, of the modules' | operations a token | of them no views |",
        "|---|---|---|---|",
    ]
    for row in result["shapes"]:
        padded = ", padded" * row["padded"]
        before, after = row["operations"]["modules"], row["operations"]["plain"]
        counts = [f"{before[kind]:,} → {after[kind]:,}" for kind in ("all", "computing")]
        ratio = row["ratio"]["cpu"]
        lines.append(
            f"| {row['model']}, {row['rows']} rows{padded} | {_spread(ratio)} | "
            f"{' | '.join(counts)} |"
        )
    machine = result["machine"]
    lines += [
        "",
        f"Least, median and most of the processor time of neighbouring runs. {_source(result)} "
        f"<sub>{machine['torch_threads']} thread, {machine['instruction_set']}, load average "
        f"{machine['load_average']}</sub>",
    ]
    return "\n".join(lines)


def cards() -> str:
    """What the work on the completions of all cards takes of a step."""
    result = _result("cards")
    names = {
        "unpack": "the completions of all, unpacked by every process",
        "regression": "the critic's regression on the path, fitted by every process",
        "credit": "boundaries, GAE, returns and normalisation, in every process",
        "write": "the Parquet file and its index line, written by process 0",
    }
    lines = [
        f"Of a step of {result['assumed_seconds']:.0f} s (assumed: not run on several cards yet) "
        f"in which each card samples {result['completions']} × {result['length']:,} tokens:",
        "",
        "| | µs a token | at 8 cards | at 64 | at 512 | below 2 % up to |",
        "|---|---|---|---|---|---|",
    ]
    for name, words in names.items():
        work = result["work"][name]
        shares = " | ".join(f"{work['share'][count]:.1%}" for count in ("8", "64", "512"))
        time = work["microseconds_per_token"]
        lines.append(f"| {words} | {time:.2f} | {shares} | {work['cards_at_limit']:,} cards |")
    lines += [
        "",
        f"A process sends and is sent {result['bytes_per_token']:.0f} bytes a token. "
        f"{_source(result)}",
    ]
    return "\n".join(lines)


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _source(result: dict) -> str:
    machine = result["machine"]
    return (
        f"<sub>`{result['command']}`, commit {result['commit']}, torch "
        f"{result['versions']['torch']}, {machine['cores']} cores</sub>"
    )


BLOCKS = (
    engines,
    decoding,
    quickstart_gain,
    quickstart,
    memory,
    smollm2,
    gradients,
    learning,
    choices,
    breakdowns,
    speed,
    update,
    scaling,
    cards,
)

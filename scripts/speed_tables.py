"""benchmarks/results/*.json -> the tables of what takes how long."""

import results_tables
from results_tables import _result, _source


def speed() -> str:
    """A step against TRL's, where many completions share a prompt and where few do."""
    names = ("speed_smollm2", "speed_smollm2_pairs")
    found = [_result(name) for name in names if (results_tables.RESULTS / f"{name}.json").is_file()]
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
    other = "update_trl" if (results_tables.RESULTS / "update_trl.json").is_file() else "update"
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
        if not (results_tables.RESULTS / f"{name}.json").exists():
            continue
        result = _result(name)
        lines += [
            f"| {result['shape']} | {row['engine']} | {row['tokens_per_second']['median']:,.0f} | "
            f"{row['logprob_difference_mean']:.1e} | {row['logprob_difference_max']:.1e} |"
            for row in result["rows"]
        ]
        sources.append(_source_and_load(result))
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


def inspector() -> str:
    """What the inspector takes for a run of 2,000 steps, beside what it may."""
    result = _result("inspector")
    search = result["search_2000_steps"]
    found = {
        "first view of a run of 2,000 steps": result["first_view_2000_steps"],
        "another step": result["change_step_64"],
        "slider to repaint, 8 completions of 8,192 tokens": result["slider_to_repaint_8x8192"],
        "a prompt over 2,000 steps": result["prompt_across_2000_steps"],
        "search of the run by number, first matches": _part(search["by_number"], "first"),
        "all": _part(search["by_number"], "all"),
        "by a text found everywhere, first matches": _part(search["by_text"], "first"),
        "all of them": _part(search["by_text"], "all"),
        "as seen in the browser, first matches": _part(search["in_browser"], "first"),
        "all in the browser": _part(search["in_browser"], "all"),
    }
    lines = ["| | ms | goal |", "|---|---|---|"]
    lines += [f"| {what} | {t['median_ms']:,.0f} | {t['goal_ms']:,} |" for what, t in found.items()]
    return "\n".join([*lines, "", _source_and_load(result)])


def _source_and_load(result: dict) -> str:
    return f"{_source(result)} <sub>load average {result['machine']['load_average']}</sub>"


def _part(times: dict, part: str) -> dict:
    return {"median_ms": times[f"{part}_ms"], "goal_ms": times[f"goal_{part}_ms"]}


BLOCKS = (speed, update, scaling, engines, decoding, cards, inspector)

"""What benchmarks/critic.py and the tuned study of benchmarks/learning.py rest on: exact values
that see no token ahead, problems that are kept, and the arithmetic of sweep and goals."""

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from critic_rollouts import rollouts_of
from datasets import Dataset
from reasoning_gym import create_dataset
from reasoning_gym.utils import extract_answer

from spo.rewards.verifiers import reasoning_gym_reward

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "benchmarks"))

import critic_tasks  # noqa: E402
import exact_critic  # noqa: E402
import learning  # noqa: E402
import learning_goals  # noqa: E402
import learning_tasks  # noqa: E402
import tuned_report  # noqa: E402

# --- exact values ---------------------------------------------------------------------------------

ENTRY = {"metadata": {"expression": "4 - 1 + 7"}}
RIGHT = "4-1=3\n3+7=10\n<answer>10</answer>"
SOLUTIONS = (
    RIGHT,
    "so 4-1=3\nthen 3+7=10\n<answer>10</answer>",
    "4-1=3\n3+7=11\n<answer>11</answer>",
    "4-1=3\n3+7=100\n<answer>100</answer>",
    "4-1=3\n3+7=1\n<answer>1</answer>",
    "4-1=3\n3+7=10\n<answer>10</answer>\n",
    "4-1=3\n3+7",
)


TOKENS = re.compile("so |then |</?answer>|.", flags=re.S)


def exact_values(tokens: list[str]) -> np.ndarray:
    """Before every token and the end token, at a success rate of 0.3."""
    problems = Dataset.from_dict({"task": ["chain_sum"], "entry": [json.dumps(ENTRY)]})
    rollouts = rollouts_of(["".join(tokens)], cuts=[[len(token) for token in tokens]])
    return exact_critic.ExactValue(problems).predict(rollouts, None)[0]


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_exact_values_look_at_no_token_ahead(solution):
    tokens = TOKENS.findall(solution)
    values = exact_values(tokens)
    for t in range(len(tokens) + 1):
        for ending in ("", "0", "\n", "9\n<answer>10</answer>", "x" * 30):
            changed = exact_values(tokens[:t] + TOKENS.findall(ending))
            assert np.array_equal(values[: t + 1], changed[: t + 1]), (t, ending)


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_exact_values_are_the_share_of_right_lines_written_until_the_first_mistake(solution):
    """Every prefix by itself: it is right if the solution without mistakes begins with it."""
    tokens = TOKENS.findall(solution)
    for t, value in enumerate(exact_values(tokens)):
        prefix = "".join(tokens[:t]).replace("so ", "").replace("then ", "")
        lines_left = 3 - min(prefix.count("\n"), 2)
        expected = 0.3 ** (lines_left / 3) if RIGHT.startswith(prefix) else 0.0
        assert value == pytest.approx(expected, rel=1e-5), (t, prefix)


# --- problems and what a critic may read of them --------------------------------------------------


def test_borrows_are_counted_on_the_right_way():
    problems = create_dataset(
        "chain_sum", size=50, seed=1, min_terms=8, max_terms=10, min_digits=1, max_digits=1
    )
    for entry in problems:
        steps = critic_tasks.flawless_solution("chain_sum", entry).split("\n")[:-1]
        pairs = [step.split("=")[0] for step in steps if "-" in step.lstrip("-").split("=")[0]]
        found = 0
        for pair in pairs:
            left, _, right = pair.rpartition("-")
            found += int(left.rstrip("-")) % 10 < int(right) if "+" not in pair else 0
        assert learning_tasks.borrows(entry) == found


def test_hard_problems_are_kept_and_carry_a_solution_that_held_out_ones_do_not():
    task = learning_tasks.TASKS["chain_sum_habit_hard"]
    settings = {"max_steps": 2, "per_device_train_batch_size": 16, "num_generations": 8}
    train, held_out = learning_tasks.problems(task, settings)
    assert (len(train), len(held_out)) == (4, task.eval_size)
    for row in [*train, *held_out.select(range(20))]:
        assert learning_tasks.borrows(json.loads(row["entry"])) in (3, 4)
    assert set(held_out.column_names) == set(train.column_names) - {"solution", "prose"}
    for row in train:
        assert row["solution"].endswith(f"<answer>{row['answer']}</answer>")
        assert row["prose"].endswith(f"The answer is {row['answer']}.")


def test_a_solution_in_prose():
    assert critic_tasks.in_prose("3 cat*4=12\n0+12=12\n-1-2=-3\n<answer>-3</answer>") == (
        "Then 3 cat times 4 gives 12. Then 0 plus 12 gives 12. Then -1 minus 2 gives -3. "
        "The answer is -3."
    )


def test_words_are_sorted_by_their_bytes_and_by_habit_as_in_a_dictionary():
    problems = create_dataset("word_sorting", size=60, seed=1, **critic_tasks.SORTING_OPTIONS)
    matters = [entry for entry in problems if learning_tasks.has_capitals(entry)]
    assert 20 < len(matters) < 60
    writer = critic_tasks.quickstart.Writer(random.Random(1), 0.0, fillers=8, habit_fraction=1.0)
    for entry in problems:
        right = critic_tasks.flawless_solution("word_sorting", entry)
        assert right.endswith(f"<answer>{entry['answer']}</answer>")
        answer = extract_answer(critic_tasks.write_word_sorting(entry, writer))
        by_habit = sorted(
            entry["metadata"]["original_words"],
            key=str.casefold,
            reverse=entry["metadata"]["direction"] == "descending",
        )
        assert answer.split(", ") == by_habit
        assert (problems.score_answer(answer, entry) < 1) == (entry in matters)


def test_half_an_answer_earns_nothing_where_full_marks_are_asked_for():
    task = learning_tasks.TASKS["word_sorting_right"]
    settings = task.settings | {"max_steps": 1}
    row = learning_tasks.problems(task, settings)[0][0]
    answer = row["answer"].split(", ")
    swapped = ", ".join([answer[1], answer[0], *answer[2:]])
    texts = [f"<answer>{text}</answer>" for text in (row["answer"], swapped)]
    columns = {name: [row[name]] * 2 for name in ("entry", "task", "task_options")}
    assert learning.full_marks(None, texts, None, **columns) == [1.0, 0.0]
    in_parts = reasoning_gym_reward(None, texts, None, **columns)
    assert 0 < in_parts[1] < in_parts[0] == 1


# --- sweep, comparisons, goals --------------------------------------------------------------------


def made_up(mode: str, seed: int, accuracies: list[float], **settings) -> dict:
    evaluations = [
        {"update": 20 * i, "accuracy": accuracy, "cpu_seconds": 10.0 * i}
        for i, accuracy in enumerate(accuracies)
    ]
    settings = {"learning_rate": 4e-4, "max_grad_norm": 0.1} | settings
    steps = {"grad_norm": [0.05, 0.2]}
    run = {"task": "t_habit", "mode": mode, "seed": seed, "samples_per_update": 16}
    return run | {"evaluations": evaluations, "steps": steps, "settings": settings}


def write_sweep(folder: Path, rate: float, accuracies: list[float], mode: str = "grpo") -> None:
    cell = {"learning_rate": rate, "max_grad_norm": 0.1}
    path = folder / "t_habit" / f"{mode}{tuned_report.cell_name(cell)}-seed1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made_up(mode, 1, accuracies, **cell)))


def test_a_mode_runs_at_its_own_best_cell_or_at_that_of_the_mode_it_is_tuned_as(tmp_path):
    write_sweep(tmp_path, 2e-4, [0.2, 0.3, 0.4, 0.5])
    write_sweep(tmp_path, 8e-4, [0.2, 0.4, 0.5, 0.5])
    write_sweep(tmp_path, 4e-4, [0.2, 0.4, 0.5, 0.4], mode="reference")
    assert tuned_report.best_cell(tmp_path, "grpo")["learning_rate"] == 8e-4
    assert tuned_report.best_cell(tmp_path, "trl_grpo")["learning_rate"] == 8e-4
    assert tuned_report.best_cell(tmp_path, "lam_auto_64")["learning_rate"] == 4e-4
    assert tuned_report.best_cell(tmp_path / "nothing", "grpo") == {}
    rows = {row["cell"]: row for row in tuned_report.sweep_table(tmp_path)}
    assert rows["-lr0.0008-clip0.1"]["best"]
    assert not rows["-lr0.0002-clip0.1"]["best"]
    assert rows["-lr0.0008-clip0.1"]["clipped"] == 0.5  # norms of 0.05 and 0.2


def test_a_language_model_keeps_its_learning_rate(tmp_path):
    """The sweep's cell is a tiny model's: 8e-4 would be more than twice the language model's."""
    write_sweep(tmp_path / "sweep", 8e-4, [0.2, 0.4, 0.5, 0.5])
    arguments = ["--tasks", "chain_sum", "smollm2_leg_counting", "--modes", "grpo", "reference"]
    arguments += ["--seeds", "1", "--out", str(tmp_path)]
    jobs = learning.jobs(learning.parse_arguments(arguments))
    rates = {job[:2]: job[3].get("learning_rate") for job in jobs}
    assert rates["chain_sum", "grpo"] == 8e-4
    for mode in ("grpo", "reference"):
        assert rates["smollm2_leg_counting", mode] is None  # so the task's own counts
    assert learning_tasks.TASKS["smollm2_leg_counting"].settings["learning_rate"] == 3e-4


def study(seeds: tuple[int, ...] = (1, 2, 3)) -> list[dict]:
    runs = {
        "grpo": {s: made_up("grpo", s, [0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6]) for s in seeds},
        "values_0": {s: made_up("values_0", s, [0.2, 0.4, 0.5, 0.6 + s / 100]) for s in seeds},
        "reference": {s: made_up("reference", s, [0.2, 0.6, 0.7, 0.8]) for s in seeds},
        "peer_2": {s: made_up("peer_2", s, [0.2, 0.3, 0.4, 0.5 + s % 3 / 10]) for s in seeds},
    }
    return tuned_report.summarise(runs)


def test_runs_of_different_lengths_are_compared_over_what_both_have():
    rows = {row["mode"]: row for row in study()}
    against = rows["reference"]["against_grpo"]
    assert against["mean"] == pytest.approx(0.3)
    assert against["samples"] == 960
    assert rows["reference"]["samples_ratio"] == 0.25
    assert rows["grpo"]["target"] == 0.6


def test_goals_say_what_was_reached_what_was_missed_and_where_seeds_are_too_few():
    def reached(seeds: tuple[int, ...]) -> dict:
        goals = learning_goals.goals({"t_habit": study(seeds)}, [])
        return {(goal["goal"], goal["mode"]): goal["reached"] for goal in goals}

    found = reached((1, 2, 3))
    assert found["at most 0.35 × GRPO mode's samples to its end", "reference"] is True
    assert found["mean accuracy above values_0", "reference"] is True
    assert found["no column: above GRPO mode", "peer_2"] is False  # two standard errors
    assert set(reached((1, 2)).values()) == {None}


def test_the_summary_counts_tasks_and_wants_all_of_reinforce_beaten():
    tasks = {"t_habit": study(), "u": study()}
    for row in tasks["u"]:
        if row["mode"] == "reference":
            lost = {"mean": 0.01, "standard_error": 0.1, "seeds": 3}
            row["against"] |= {"reinforce": lost, "reinforce_nll": lost | {"mean": 0.5}}
    lines = {row["goal"]: row for row in learning_goals.summary(learning_goals.goals(tasks, []))}
    third = lines["at most 0.35 × GRPO mode's samples to its end"]
    assert (third["asked"], third["reached"], third["missed"]) == (6, ["t_habit", "u"], [])
    assert lines["above values of 0 by two standard errors"]["reached"] == ["t_habit", "u"]
    above = lines["above every REINFORCE by two standard errors"]
    assert (above["reached"], above["missed"]) == ([], ["u"])  # none ran on the other
    no_column = lines["no column: above GRPO mode by two standard errors"]
    assert no_column["missed"] == ["t_habit (peer_2)", "u (peer_2)"]


def test_a_mode_that_only_forgets_is_no_mark_to_reach():
    runs = {
        "grpo": {1: made_up("grpo", 1, [0.3, 0.1, 0.2])},
        "reference": {1: made_up("reference", 1, [0.3, 0.1, 0.25])},
    }
    assert [row["samples_ratio"] for row in tuned_report.summarise(runs)] == [None, None]


def test_older_runs_count_if_they_began_with_the_same_model(tmp_path):
    def write(study: str, run: dict) -> None:
        path = tmp_path / study / "t_habit" / f"{run['mode']}-seed{run['seed']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))

    for seed in (1, 2, 3, 4):
        write("tuned", made_up("grpo", seed, [0.2, 0.3]))
        write("first", made_up("grpo_slow", seed, [0.21 if seed == 4 else 0.2, 0.5]))
    write("first", made_up("trl_grpo", 4, [0.21, 0.5]))
    rows = tuned_report.summarise(tuned_report.load_study(tmp_path)["t_habit"])
    found = {row["mode"]: row for row in rows}
    assert found["grpo_slow_first"]["seeds"] == [1, 2, 3]
    assert "trl_grpo_first" not in found
    # the best GRPO mode of the task is what all are compared with
    assert {row["baseline"] for row in rows} == {"grpo_slow_first"}
    assert found["grpo"]["against_grpo"]["mean"] == pytest.approx(-0.2)


def test_continuations_count_as_samples():
    run = made_up("monte_carlo", 1, [0.2, 0.3], value_sources=["monte_carlo"])
    run["settings"]["value_continuations"] = 4
    run["evaluations"][1]["update"] = 2
    run["steps"]["spo/mean_segments_per_sequence"] = [10.0, 5.0]
    assert tuned_report.curve(run)[:, 0].tolist() == [0.0, 16 * (1 + 40) + 16 * (1 + 20)]

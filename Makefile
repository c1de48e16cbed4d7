.PHONY: check format test

check: ## what has to pass before a commit
	ruff check .
	ruff format --check .
	python -m pytest -n auto --dist loadfile

format:
	ruff check --fix .
	ruff format .

test:
	python -m pytest -n auto --dist loadfile

.PHONY: space
space: ## build/space and build/space-static, ready to upload to Hugging Face Spaces
	python spaces/assemble.py

.PHONY: bench-smoke
bench-smoke: ## that the benchmarks run, on tiny models
	python -m pytest tests/test_benchmarks_run.py tests/test_benchmark_learning.py

.PHONY: faults
faults: ## kills, damage, disks, signals, mutated files, random settings: half an hour on two cores
	python tests/faults/kills.py 130
	python tests/faults/files.py 2000
	python tests/faults/configs.py 500
	python -m pytest tests/test_signals.py tests/test_checkpoints.py tests/test_resuming.py \
		tests/test_saving.py tests/test_reward_calls.py -m "slow or not slow"

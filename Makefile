.PHONY: check format test

check: ## what has to pass before a commit
	ruff check .
	ruff format --check .
	python -m pytest

format:
	ruff check --fix .
	ruff format .

test:
	python -m pytest

.PHONY: space
space: ## build/space and build/space-static, ready to upload to Hugging Face Spaces
	python spaces/assemble.py

.PHONY: bench-smoke
bench-smoke: ## that the benchmarks run, on tiny models
	python benchmarks/update.py --smoke
	python benchmarks/scaling.py --smoke --steps 1 --out build/benchmarks
	python benchmarks/learning.py --tasks smoke --modes grpo spo_p20 trl_grpo --seeds 1 --out build/benchmarks/learning
	python benchmarks/memory.py --estimate --out build/benchmarks

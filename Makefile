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

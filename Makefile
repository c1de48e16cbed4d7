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

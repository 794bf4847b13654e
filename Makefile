# make demo | test | lint | bench | gpu-check | fuzz | clean. The first call builds .venv; later calls start at once.
PYTHON ?= python3
OUT ?= outputs
BIN := .venv/bin
JOBS ?= 2
CASES ?= 50000
SEED ?= 0
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: demo test lint bench gpu-check fuzz clean
.DEFAULT_GOAL := test

demo: .stamps/venv
	$(BIN)/unproject demo --out $(OUT)/demo

test: .stamps/venv .stamps/node/ready
	$(THREADS) $(BIN)/python -m pytest -n $(JOBS) -q

lint: .stamps/venv .stamps/types/unproject
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .stamps/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache unproject

bench: .stamps/venv
	$(BIN)/unproject bench --all --out docs/results

gpu-check: .stamps/venv
	$(BIN)/python -m unproject.scripts.gpu_check --out $(OUT)/gpu-check.json

# 50 000 damaged and hostile inputs; CASES=2000 for fewer, SEED=1 for others.
fuzz: .stamps/venv
	$(THREADS) $(BIN)/python -m unproject.scripts.fuzz --jobs $(JOBS) --cases $(CASES) --seed $(SEED) --out $(OUT)/fuzz

clean:
	rm -rf .stamps build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.stamps/venv: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 13) else \
		"unproject needs Python 3.10 to 3.12, this is %d.%d; call make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mkdir -p .stamps && touch $@

# The Khronos glTF validator; the tests that use it are skipped without it.
.stamps/node/ready:
	@mkdir -p .stamps/node
	@if command -v npm >/dev/null 2>&1; then \
		npm install --silent --no-audit --no-fund --prefix .stamps/node gltf-validator@2.0.0-dev.3.10 >/dev/null 2>&1 \
			|| echo "gltf-validator did not install; its tests will be skipped"; \
	else echo "npm not found; the tests with the glTF validator will be skipped"; fi
	@touch $@

# mypy names modules after folders: through this link the checkout is called unproject wherever it lies.
.stamps/types/unproject:
	@mkdir -p .stamps/types && ln -sfn ../.. $@

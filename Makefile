# The commands for a newcomer:  make figures  (the paper from its records)   make repro  (the paper from scratch)
#                               make test  (every check)   make notebooks  (the analysis)
# uv is taken from the PATH, or installed into .uv/ with pip; it installs everything else from uv.lock.

UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --quiet
# Without the tools of the tests: a smaller environment, and Lightning imports some of them at every start.
LEAN := $(RUN) --no-dev

# Every stage is its own process; without stored bytecode each of them would compile torch's Python sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: repro figures test page lint smoke rehearsal torture bench gpu-table notebooks derived

repro: $(UV)          ## train, measure, analyse, typeset: everything that is out of date -> paper/paper.pdf
	$(LEAN) skipform repro
	test ! -e .git || $(LEAN) skipform compare

figures: $(UV)        ## draw all figures and typeset the paper from the committed records and measures; trains nothing
	$(LEAN) skipform figures

test: $(UV)           ## unit tests: the mathematics, the programs, the README's commands
	$(RUN) pytest

page: $(UV)           ## the review page in a headless Chromium (Debian: apt-get install chromium)
	$(RUN) pytest -m page -n 0

lint: $(UV)           ## format, rules, types
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

smoke: $(UV)          ## the whole pipeline in a fresh copy at scale smoke, twice, compared byte by byte
	$(RUN) pytest -m pipeline -n 0 -o faulthandler_timeout=0

rehearsal: $(UV)      ## scale paper in a fresh copy, with small stand-ins of the data sets, every stage and net: on a CPU
	$(RUN) python tests/rehearsal.py

torture: $(UV)        ## the pipeline killed 50 times, on a full disk, twice at once, ...: takes an hour
	$(RUN) python tests/torture.py

bench: $(UV)          ## speed and memory, as ratios measured in one run
	for file in benchmarks/bench_*.py; do echo "== $$file"; $(RUN) python $$file || exit 1; done

MINUTES := 30
gpu-table: $(UV)      ## CIFAR-10 at full scale, in order of worth, MINUTES long, on one GPU -> results/gpu.csv
	$(LEAN) skipform gpu_table --minutes $(MINUTES) --download

notebooks: $(UV)      ## open the analysis in Jupyter
	$(UV) run --group notebooks jupyter lab analysis

derived: $(UV)        ## renew what derives from other files: costs, uv.lock, requirements.txt
	$(RUN) skipform costs
	$(UV) lock
	$(UV) export --quiet --frozen --no-dev --no-hashes --no-header --no-annotate --output-file requirements.txt

.uv/bin/uv:
	python3 -m pip install --quiet --disable-pip-version-check --target .uv uv

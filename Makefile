# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready

export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
# Real data beside the project is used when it is there; without it the simulator stands in.
ifneq ($(wildcard ../shared/data/README.md),)
export FULLRANK_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test slow fuzz check bench rankers sequence clean

demo: $(STAMP)
	$(VENV)/bin/fullrank demo

# Tiny matrices: a second thread would only wait for the first.
test slow fuzz: export OMP_NUM_THREADS = 1

test: $(STAMP)
	$(PY) -m pytest -m "not slow" --durations=8

slow: $(STAMP)
	$(PY) -m pytest -m slow

# The storm on the server in full; `make test` sends a twentieth of it.
fuzz: $(STAMP)
	FULLRANK_FUZZ_REQUESTS=24000 $(PY) -m pytest -s tests/serve/test_fuzz.py tests/serve/test_fuzz_sockets.py

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell fullrank studies docs README.md bench/*.py bench/peers
	$(PY) bench/lengths.py

bench: $(STAMP)
	$(PY) bench/peers.py
	$(PY) bench/data_path.py
	$(PY) bench/preparation.py
	$(PY) bench/diagnostics_overhead.py
	$(PY) bench/compile.py
	$(PY) bench/rankmixer_utilisation.py --json bench/.work/rankmixer_utilisation.json
	OMP_NUM_THREADS=1 $(PY) bench/dropout.py
	OMP_NUM_THREADS=1 $(PY) bench/full_mixing.py
	OMP_NUM_THREADS=1 $(PY) bench/recurrent.py
	OMP_NUM_THREADS=1 $(PY) bench/attention.py --out docs/results/attention.svg
	OMP_NUM_THREADS=1 $(PY) bench/padding.py
	$(PY) bench/histories.py
	OMP_NUM_THREADS=1 $(PY) bench/forms.py
	OMP_NUM_THREADS=1 $(PY) bench/serving.py
	$(PY) bench/report.py

# Every ranker, its baselines and its controls: hours on two cores, and each finished run is kept.
RANKERS := dcnv2 lr mlp fm fm_wide dcnv2_wide pfl sfg_fm sfg_dcnv2 dmoe multi_embedding dmoe_wide \
	rankmixer rankup rankup_plain rankelastor rankelastor_plain
POINTS := fm fwfm fvfm fmfm nfm cin dcn dcn_v2 autoint pfl
LOGS := frappe ml_100k collm_ml1m census collapse healthy

rankers: $(STAMP)
	for log in $(LOGS); do $(VENV)/bin/fullrank compare $(RANKERS:%=$${log}_%) --seeds 5 \
		--name rankers_$$log || exit 1; done
	$(VENV)/bin/fullrank compare $(POINTS:%=interactions_%) --seeds 5 --name interactions
	$(PY) studies/run.py rankers

# Models that read a user's past, on logs with one; TokenFormer's variants where they learn in minutes.
STREAM := tokenformer tokenformer_a0 tokenformer_a1
PAST_collm_past := mlp dcnv2 two_tower din dien sim fedin fedin_time $(STREAM)
PAST_ml_100k_past := mlp din dien
PAST_beauty := mlp two_tower din dien sim_hard fedin
PAST_games := mlp din fedin
PAST_habits := mlp din fedin
PAST_habits_off := mlp din fedin

sequence: $(STAMP)
	$(foreach log,collm_past ml_100k_past beauty games habits habits_off,$(VENV)/bin/fullrank compare \
		$(PAST_$(log):%=$(log)_%) --seeds 5 --name sequence_$(log) &&) true
	$(PY) studies/run.py sequence

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0 -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs

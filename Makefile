# Two commands do all the set-up:
#   make demo   environment, install, mini corpus, both stages, five folds, a
#               trained model at work
#   make test   environment, install, all tests
# and more:
#   make faults bad input and kills by the hundred, a table of what happened
#   make bench  environment, install, what training costs (half an hour)
#   make upstream SPEECHBRAIN=/path/to/checkout        lays the recipe in there
#   make upstream-check SPEECHBRAIN=/path/to/checkout  and runs its checks

PYTHON ?= python3
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO ?= demo_output
RECIPE := recipes/IEMOCAP/wap_adapter
# Of the session that the first fold has not trained on
HEARD := Session1/sentences/wav/Ses01F_impro01

.PHONY: demo test faults bench lint upstream upstream-check install clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --upgrade pip
	"$(BIN)/python" -m pip install --quiet -e ".[test]"
	touch $@

# One thread: the demo's tensors are too small to share.
demo: install
	"$(BIN)/python" demo/make_corpus.py $(DEMO)/corpus
	cd $(RECIPE) && OMP_NUM_THREADS=1 "$(BIN)/python" cross_validate.py \
		hparams/adapter.yaml hparams/classifier.yaml \
		--data_folder="$(CURDIR)/$(DEMO)/corpus" \
		--output_folder="$(CURDIR)/$(DEMO)/results" \
		--cache_folder="$(CURDIR)/$(DEMO)/feature_cache" \
		--encoder_source=fbank --d_model=64 --nhead=4 --d_ffn=128 \
		--max_frames=250 --mlp_residual=True --num_attributes=64 \
		--batch_size=16 --lr=0.001 --classifier_lr=0.005 \
		--adapter.number_of_epochs=4 --classifier.number_of_epochs=8
	"$(BIN)/python" -m speechbrain_wap export --output=$(DEMO)/model \
		--run_folder=$(DEMO)/results/seed1993/fold1/classifier
	OMP_NUM_THREADS=1 "$(BIN)/python" -m speechbrain_wap recognize \
		$(DEMO)/model $(DEMO)/corpus/$(HEARD)/Ses01F_impro01_F00*.wav

# Two processes, each with whole files, the long ones first.
test: install
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -q -n 2 --dist=loadfile \
		--no-loadscope-reorder

# vector-quantize-pytorch is only compared with. BENCH takes further options.
bench: install
	"$(BIN)/python" -m pip install --quiet "vector-quantize-pytorch>=1.32"
	"$(BIN)/python" benchmarks/training.py --json=benchmarks/training.json \
		--figure=benchmarks/training.png $(BENCH)

# All bad inputs and kills, of which `make test` has one of each kind, a test of
# --compile, which takes minutes, and a table of what happened.
faults: install
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -q -n 2 --dist=worksteal \
		tests/faults tests/integration/test_single_runs.py \
		tests/unittests/test_batches.py \
		tests/unittests/test_emotion_model.py \
		--long --fault-table=build/faults.md
	@echo "see build/faults.md"

# Linters of SpeechBrain's versions, see setup.py
lint: install
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/yamllint" recipes
	"$(BIN)/codespell" -L caf -S results demo recipes speechbrain_wap tests upstream *.md

upstream: install
	"$(BIN)/python" upstream/lay_out.py "$(SPEECHBRAIN)"

# Ten minutes or so on two cores
upstream-check: install
	"$(BIN)/python" upstream/check.py "$(SPEECHBRAIN)"

clean:
	rm -rf $(VENV) $(DEMO)

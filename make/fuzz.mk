# Many more hostile inputs than `make test` tries, at random; included by the Makefile. TIMES: how many times as many.
TIMES ?= 20
.PHONY: fuzz
fuzz: setup-test ## hostile input at every door, twenty times what `make test` tries, new at each run (half an hour)
	@FUZZ_TIMES=$(TIMES) $(BIN)/python -m pytest tests/fuzz -p no:cacheprovider --timeout=7200 $(PYTEST_ARGS)

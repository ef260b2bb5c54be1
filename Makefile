# A front to cargo: `cargo build`, `cargo test` and `cargo bench` work by themselves once the packages of
# tests/setup/packages.txt are there.

CARGO ?= cargo
PREFIX ?= /usr/local
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: build test bench bench-suites demo install clean
.DEFAULT_GOAL := build

build:
	@tests/setup/packages.sh build
	$(CARGO) build --release --locked

# Every test: units, properties, models, the whole switch in memory and in network namespaces, the fuzz corpus.
test:
	@tests/setup/packages.sh build test
	$(CARGO) test --workspace --locked
	$(CARGO) test --release --locked -p flowtable --features loom --lib model
	$(CARGO) test --release --locked -p dataplane --features loom --test loom
	PYTHONPATH=benches PYTHONDONTWRITEBYTECODE=1 python3 -m unittest peers.test_pure

# Sluice beside its peers, which are installed: benches/peers/README.md. BENCH="--quick" and the like are its options.
# About half an hour; best with nothing else on the machine.
bench:
	@tests/setup/packages.sh build bench
	$(CARGO) build --release --locked --bins --examples
	@$(AS_ROOT) env PYTHONPATH=benches PYTHONDONTWRITEBYTECODE=1 python3 -m peers $(BENCH)

# Sluice by itself, one suite per question, with criterion.
bench-suites:
	@tests/setup/packages.sh build
	$(CARGO) bench --locked

demo:
	@tests/setup/packages.sh build demo
	$(CARGO) build --release --locked
	@tests/demo.sh

install: build
	install -D -m 755 target/release/sluice $(DESTDIR)$(PREFIX)/bin/sluice

clean:
	$(CARGO) clean

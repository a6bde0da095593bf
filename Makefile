# The commands of this repository. `make help` lists them.
# Everything that is built goes to one target folder outside the checkout, so that clones share RocksDB's long build.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/longshore/target
export CARGO_TERM_COLOR ?= auto
CARGO ?= cargo
# One selection for demo, tests and benchmarks: with another, Cargo resolves other features and compiles much of it again.
BUILD = $(CARGO) build --workspace --all-targets
BIN = $(CARGO_TARGET_DIR)/debug
# The simulator alone, with bugs to plant: never in the selection above, where they would reach every program.
SIM = $(CARGO) test -p longshore-sim --features planted-bugs

.PHONY: help setup demo test sim faults fuzz lint fmt bench console

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## install what the machine lacks (make demo and make test do it themselves)
	@infra/setup.sh build console

demo: ## the main job on this machine: build, replicate and deploy to 12 nodes (ONCE=1: check it and exit; LOG=kafka: all roles apart)
	@infra/setup.sh build console $(if $(filter kafka,$(LOG)),kafka)
	$(BUILD)
	@$(BIN)/longshore-demo $(if $(ONCE),--once) $(if $(LOG),--log $(LOG))

test: ## every test
	@infra/setup.sh build console browser compose faketime mounts netns systemd kafka apicurio foreign
	$(BUILD)
	$(CARGO) test --workspace --all-targets --no-fail-fast
	$(SIM) --test planted -- --nocapture

sim: ## simulated worlds: SEEDS=n (300; FULL=1: 2,000), or one alone with its whole trace: SEED=k
	@infra/setup.sh build
	@$(subst test,run,$(SIM)) --quiet -- $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),$(if $(FULL),2000,300)))

faults: ## kills, races and clocks alone, with their figures (FULL=1: ten times as many; SEED=n: the same choices again)
	@infra/setup.sh build faketime
	$(BUILD)
	$(CARGO) test --workspace --test kill_control --test worker_races --test clock_jumps -- --nocapture --test-threads 1

lint: ## formatting, clippy, licences and sources, dependency rules
	@infra/setup.sh build console deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	cargo-deny --all-features --log-level error check licenses bans sources
	@infra/check-dependencies.sh

fmt: ## format the code
	$(CARGO) fmt --all

fuzz: ## feed everything that reads bytes of others with lies, MINUTES=n in all (10); findings join tests/fuzz/corpus
	@infra/setup.sh build
	@$(BUILD) --quiet
	@$(BIN)/longshore-fuzz --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(if $(TARGET),--target $(TARGET))

console: ## build the console's page into producers/console/dist
	@infra/setup.sh console

bench: ## list the benchmarks
	@echo 'make bench-queue   jobs per second over the HTTP API, and the time from queue to start'
	@echo 'make bench-auth    what it costs to prove who sent a request'
	@echo 'make bench-store   publish and fetch a tree; what a small change uploads'
	@echo 'make bench-publish  real files, new and unchanged, against rclone copy of their tarball'
	@echo 'make bench-delta    bytes of an update of real releases: chunks, patches, and other tools'
	@echo 'make bench-processor  requests into facts and state on Kafka, against the bare client and Kafka Streams'
	@echo 'make bench-latency    from a request on Kafka to its fact, against a bare transaction'
	@echo 'make bench-failover   kill -9 of control nodes and brokers under load: until facts flow again; lost and doubled'
	@echo 'make bench-replicate  from the last uploaded byte until ten regions have all: copied meanwhile, against after'
	@echo 'make bench-fanout     a goal to 9,000 nodes of one region process over TLS, and all of them back, against etcd'
	@echo 'make bench-fleet      300,000 nodes of ten regions through the processors: reports, a rollout, queries'
	@echo 'make bench-swarm      a file from a bucket to 20 nodes in 4 racks on real rates, against three BitTorrent clients'
	@echo 'make bench-swarm-sim  10 GB to 100,000 simulated nodes, by the policy that runs, held against five real networks (LAB=FILE: measured before)'
	@echo 'make bench-node       CPU of an agent for each GB that it receives and sends, and its memory meanwhile, against aria2'
	@echo 'make bench-node-idle  memory and CPU of an agent with five services that run'
	@echo 'Each takes less than 8 minutes; FULL=1 takes longer and measures more.'

bench-latency bench-failover: SETUP = kafka
bench-processor: SETUP = streams
bench-publish: SETUP = content
bench-delta: SETUP = pairs
bench-fanout: SETUP = etcd
bench-swarm bench-node: SETUP = swarm
bench-swarm-sim: SETUP = netns
bench-%: ## run one benchmark; its last line is one JSON object
	@infra/setup.sh build $(SETUP)
	@$(BUILD) --quiet
	@$(BIN)/$* $(if $(FULL),--full)

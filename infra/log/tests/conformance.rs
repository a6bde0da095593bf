//! Every log against the suite.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use longshore_kafka::Cluster;
use longshore_log::{
    Log,
    conformance::{self, Subject},
    kafka::{Config as KafkaConfig, KafkaLog},
    local::{Config, LocalLog},
    simulated::SimulatedLog,
};

struct Local {
    folder: tempfile::TempDir,
    log: Mutex<Option<Arc<LocalLog>>>,
}

impl Local {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), log: Mutex::new(None) }
    }

    fn open(&self) -> Arc<dyn Log> {
        let log = LocalLog::open(Config::new(self.folder.path(), conformance::topics())).unwrap();
        *self.log.lock().unwrap() = Some(log.clone());
        log
    }
}

#[async_trait]
impl Subject for Local {
    async fn create(&self) -> Arc<dyn Log> {
        self.open()
    }

    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log> {
        drop(log);
        let old = self.log.lock().unwrap().take();
        old.unwrap().close();
        self.open()
    }
}

/// Holds nothing: the log itself gives its successor.
struct Simulated(Mutex<Option<SimulatedLog>>);

#[async_trait]
impl Subject for Simulated {
    async fn create(&self) -> Arc<dyn Log> {
        let log = SimulatedLog::new(conformance::topics());
        *self.0.lock().unwrap() = Some(log.clone());
        Arc::new(log)
    }

    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log> {
        drop(log);
        let mut current = self.0.lock().unwrap();
        let log = current.take().unwrap().reopen();
        *current = Some(log.clone());
        Arc::new(log)
    }
}

/// One broker for all cases, each with topics of its own.
struct Kafka(KafkaConfig);

impl Kafka {
    fn new() -> Self {
        static BROKER: OnceLock<Cluster> = OnceLock::new();
        static CASES: AtomicU64 = AtomicU64::new(0);
        let broker = BROKER.get_or_init(|| Cluster::start(&longshore_kafka::Config::new(1)).unwrap());
        let mut config = KafkaConfig::new(broker.brokers(), conformance::topics());
        config.prefix = format!("case-{}.", CASES.fetch_add(1, Ordering::Relaxed));
        config.replication = 1;
        Self(config)
    }
}

#[async_trait]
impl Subject for Kafka {
    async fn create(&self) -> Arc<dyn Log> {
        KafkaLog::connect(self.0.clone()).await.unwrap()
    }

    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log> {
        drop(log);
        self.create().await
    }
}

mod kafka {
    use super::*;
    longshore_log::conformance!(Kafka::new());
}

mod local {
    use super::*;
    longshore_log::conformance!(Local::new());
}

mod simulated {
    use super::*;
    longshore_log::conformance!(Simulated(Mutex::default()));
}

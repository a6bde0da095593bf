//! What a role of its own stands on: the log on Kafka and the buckets. Waits for what is not there yet, as after a power
//! failure when everything starts at once.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use longshore_control::{Metered, chain};
use longshore_log::{Log, kafka, kafka::KafkaLog};
use longshore_region::Region;
use longshore_s3::{Bucket, BucketConfig};
use longshore_service::retry::Backoff;
use tokio_util::sync::CancellationToken;

use super::region::Parts;

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// So long a topic may not be as it must be: another process may just be making it, and then brokers do not know all of it yet.
const TOPICS_TIME: Duration = Duration::from_secs(45);

/// The log on Kafka, with a meter on it.
pub(super) struct Connected {
    pub(super) log: Arc<dyn Log>,
    pub(super) kafka: Arc<KafkaLog>,
}

impl Connected {
    /// Whose log this is, in snapshots: the same for all processes on it, and no other log's.
    pub(super) async fn installation(&self) -> anyhow::Result<String> {
        Ok(self.kafka.identity().await?)
    }

    /// To be called when nothing uses the log any more: others take over sooner than if this process just vanished.
    pub(super) async fn close(self) {
        drop(self.log);
        self.kafka.close().await;
        tracing::info!("the log is closed; stopped");
    }
}

/// `None` if `stop` came first.
pub(super) async fn log(config: kafka::Config, stop: &CancellationToken) -> anyhow::Result<Option<Connected>> {
    let brokers = config.brokers.clone();
    let begun = Instant::now();
    let lasting = |error: &longshore_log::Error| match error {
        longshore_log::Error::KafkaTopic { .. } => begun.elapsed() > TOPICS_TIME,
        error => is_lasting(error),
    };
    let connected = patiently("Kafka", stop, lasting, async || KafkaLog::connect(config.clone()).await).await;
    let log = connected.with_context(|| format!("the log on Kafka at {brokers}"))?;
    Ok(log.map(|kafka| Connected { log: Metered::new(kafka.clone()), kafka }))
}

/// Whether no later attempt could end otherwise.
fn is_lasting(error: &longshore_log::Error) -> bool {
    use longshore_log::Error::{Kafka, Storage, Unconfirmed};
    !matches!(error, Kafka { .. } | Storage { .. } | Unconfirmed { .. })
}

/// Starts the region once the log can be read: brokers that have just started do not lead their partitions at once.
pub(super) async fn region(parts: &Parts<'_>, stop: &CancellationToken) -> anyhow::Result<Option<Region>> {
    let lasting = |error: &longshore_region::Error| match error {
        longshore_region::Error::Log(error) => is_lasting(error),
        _ => true,
    };
    Ok(patiently("the region", stop, lasting, async || parts.clone().start(stop).await).await?)
}

/// Makes sure that a registry of the installation's own, if it has one, knows every schema by our ids.
pub(super) async fn schemas(
    registry: Option<longshore_registry::Config>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<()>> {
    let Some(registry) = registry else { return Ok(Some(())) };
    let lasting = |error: &longshore_registry::Error| !error.is_passing();
    let registered =
        patiently("the schema registry", stop, lasting, async || longshore_registry::register(&registry).await).await;
    Ok(registered.context("schema_registry.url")?.map(drop))
}

/// Makes the bucket, or sees that it is there.
pub(super) async fn bucket(
    config: &BucketConfig,
    create: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Bucket>> {
    let bucket = Bucket::connect(config).await?;
    let lasting = |error: &longshore_s3::Error| {
        !matches!(error, longshore_s3::Error::Unreachable { .. } | longshore_s3::Error::Service { .. })
            && !error.is_transient()
    };
    let look = async || if create { bucket.ensure_exists().await } else { bucket.check_exists().await };
    let there = patiently("the bucket", stop, lasting, look).await;
    let there = there.with_context(|| format!("the bucket {:?}", config.bucket))?;
    Ok(there.map(|()| bucket))
}

async fn patiently<T, E: std::error::Error + 'static, F: Future<Output = Result<T, E>>>(
    what: &str,
    stop: &CancellationToken,
    lasting: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<Option<T>, E> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let error = match stop.run_until_cancelled(attempt()).await {
            None => return Ok(None),
            Some(Ok(done)) => return Ok(Some(done)),
            Some(Err(error)) if lasting(&error) => return Err(error),
            Some(Err(error)) => error,
        };
        let wait = backoff.next_wait(&mut rand::rng());
        tracing::warn!(error = chain(&error), retry_ms = wait.as_millis(), "{what} cannot be used yet; trying again");
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return Ok(None);
        }
    }
}

//! The control role: all processors, the API and the console.
//!
//! ```text
//! processors ─read model─▶ api ─listen─▶ serve ─┬─ until told to stop: first no new requests,
//!                                               └─ then the processors; what they stand on is the caller's
//! ```
//!
//! `longshore control` runs it on Kafka, as often as one likes: each follows all facts, leads some of the partitions, and answers any
//! query. A call that one of them took and another decides is answered by the first, once it has followed the facts so far.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use longshore_api::{Api, ApiConfig, Limits as ApiLimits};
use longshore_control::{Control, ControlConfig, snapshots::SnapshotConfig};
use longshore_log::Log;
use longshore_s3::Bucket;
use longshore_schemas::RegionName;
use longshore_service::{
    limits::{self, Limit},
    request_keys::RequestKeys,
    shutdown, telemetry,
};
use longshore_signing::SigningKey;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    LOG_FILTER,
    checks::RoleChecks,
    folder::DataFolder,
    leases::Leases,
    metrics::{self, Sources},
    retention::RetentionSettings,
    secrets::{self, Secrets},
    settings::{Checked, Role, Settings},
    signing::{GOALS, PROVENANCE},
    snapshots::kept_name,
    stores,
};
use crate::{args::RoleArgs, error::Error, output};

/// In the data folder: what this node is called among those that write snapshots.
const NODE: &str = "node";

/// What the processors and the API are made of.
pub(crate) struct Parts<'a> {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) state_dir: &'a Path,
    pub(crate) regions: &'a [RegionName],
    pub(crate) shards_per_region: u32,
    pub(crate) leases: &'a Leases,
    pub(crate) limits: &'a limits::Settings,
    pub(crate) main_bucket: &'a Bucket,
    pub(crate) secrets: &'a Secrets,
    pub(crate) request_keys: &'a RequestKeys,
    pub(crate) provenance_key: Arc<SigningKey>,
    pub(crate) goal_key: Arc<SigningKey>,
    pub(crate) snapshots: SnapshotConfig,
    pub(crate) retention: &'a RetentionSettings,
    /// Whose main bucket it must be.
    pub(crate) installation: &'a str,
    pub(crate) allow_file_repositories: bool,
    /// What the topics begin with on the brokers.
    pub(crate) topic_prefix: &'a str,
}

impl Parts<'_> {
    /// Starts the processors, from a snapshot if there is no state; they end with `stop`.
    pub(crate) async fn processors(&self, stop: &CancellationToken) -> anyhow::Result<Arc<Control>> {
        let (regions, keys) = (self.regions.to_vec(), self.request_keys.clone());
        let mut config = ControlConfig::new(self.log.clone(), self.state_dir, regions, keys, self.goal_key.clone());
        config.shards_per_region = self.shards_per_region;
        config.set_limits(self.limits);
        config.queue.confirm_seconds = self.leases.confirm.0;
        config.queue.silent_seconds = self.leases.silence.0;
        config.snapshots = Some(self.snapshots.clone());
        config.retention = self.retention.retention();
        config.collection = Some(self.retention.collection(self.main_bucket, self.installation));
        let (control, _) = Control::begin(config, stop).await?;
        Ok(Arc::new(control))
    }

    /// The API before these processors.
    pub(crate) fn api(&self, control: &Control, checks: RoleChecks) -> Api {
        let config = ApiConfig {
            log: self.log.clone(),
            read: control.read_model(),
            main_bucket: self.main_bucket.clone(),
            regions: self.regions.to_vec(),
            tokens: self.secrets.tokens.clone(),
            signer: self.secrets.signer.clone(),
            request_keys: self.request_keys.clone(),
            goal_key: self.goal_key.clone(),
            provenance_key: self.provenance_key.clone(),
            announced_lasts: self.retention.collected().announced_lasts,
            limits: ApiLimits { beat_seconds: self.leases.beat.0, ..ApiLimits::of(self.limits) },
            checks: Arc::new(checks),
            allow_file_repositories: self.allow_file_repositories,
        };
        Api::with_topic_prefix(config, self.topic_prefix)
    }
}

pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("the API cannot listen on {address}: is another `longshore` running there? Choose another address")
    })
}

/// Serves the API and the metrics until `stop`, then until what it has taken is answered.
pub(crate) async fn serve(
    api: &Api,
    listener: TcpListener,
    sources: Sources,
    secrets: &Secrets,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let router = metrics::with_metrics(api.router(), sources, &secrets.tokens);
    api.serve_router(router, listener, stop.child_token()).await?;
    tracing::info!("the API has stopped");
    Ok(())
}

/// The limits of this role.
pub(crate) fn all_limits() -> Vec<&'static Limit> {
    [longshore_api::limits::LIMITS, longshore_control::limits::LIMITS].concat()
}

/// `longshore control`
pub(crate) async fn run(data: &Path, args: RoleArgs) -> Result<(), Error> {
    let checked = Settings::load(&args, data, Role::Control, &crate::up::all_limits())?;
    telemetry::init(args.log.log_format, LOG_FILTER).map_err(anyhow::Error::from)?;
    let stop = shutdown::signal().map_err(anyhow::Error::from)?;
    Ok(run_checked(checked, stop).await?)
}

async fn run_checked(checked: Checked, stop: CancellationToken) -> anyhow::Result<()> {
    let Checked { settings, limits } = checked;
    let data = DataFolder::take(&settings.data, "control")?;
    let secrets = Secrets::load(&settings.secrets())?;
    let request_keys = secrets::request_keys(&settings.secrets(), &settings.regions)?;
    let provenance_key = settings.provenance.key(&PROVENANCE, &settings.secrets())?;
    let goal_key = settings.goals.key(&GOALS, &settings.secrets())?;
    // Taken first: whoever cannot be reached need not become a leader.
    let listener = listen(settings.api.listen).await?;
    let Some(main) = stores::bucket(&settings.main_bucket()?, settings.s3.create_buckets, &stop).await? else {
        return Ok(());
    };
    let Some(connected) = stores::log(settings.log(Role::Control), &stop).await? else { return Ok(()) };
    // Before anything is written that others could not decode.
    if stores::schemas(settings.schema_registry(), &stop).await?.is_none() {
        return Ok(());
    }
    let (state_dir, installation) = (data.path.join("state"), connected.installation().await?);
    let parts = Parts {
        log: connected.log.clone(),
        state_dir: &state_dir,
        regions: &settings.regions,
        shards_per_region: settings.shards_per_region,
        leases: &settings.worker,
        limits: &limits,
        main_bucket: &main,
        secrets: &secrets,
        request_keys: &request_keys,
        provenance_key: Arc::new(provenance_key),
        goal_key: Arc::new(goal_key),
        snapshots: settings.snapshots.of(installation.clone(), &kept_name(&data.path, NODE, "control")?, &main)?,
        retention: &settings.retention,
        installation: &installation,
        allow_file_repositories: settings.api.allow_file_repositories,
        topic_prefix: settings.topic_prefix(),
    };
    let roles_stop = CancellationToken::new();
    let control = parts.processors(&roles_stop).await?;
    let checks = RoleChecks {
        control: control.clone(),
        alone: false,
        log: connected.log.clone(),
        data: data.path.clone(),
        buckets: vec![("main".to_owned(), main.clone())],
        regions: Vec::new(),
    };
    let api = parts.api(&control, checks);
    output::message(&format!("longshore control answers at http://{}, for browsers too", listener.local_addr()?));
    let sources = Sources::new(Some(control.clone()), None).with_kafka(&connected.kafka);
    let served = serve(&api, listener, sources, &secrets, &stop).await;
    roles_stop.cancel();
    control.stopped().await;
    tracing::info!("the processors have stopped");
    connected.close().await;
    served
}

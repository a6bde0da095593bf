//! `longshore up`: all roles in one process, on the local log and the embedded S3 server.
//!
//! ```text
//!  data/log        the log: the only thing that must not be lost, besides the buckets
//!  data/s3         the buckets: main, and one for each region
//!  data/state      projections; may be deleted while nothing runs: they come from a snapshot in the main bucket and from the log
//!  data/regions    what regions keep to spare work
//!  data/secrets    keys and the hashes of tokens;  data/tokens: the tokens, for their owners
//!  data/installation whose log this is, for snapshots
//!  data/ports.json the addresses that were picked, to be picked again
//!  data/up.json    where everything is, written once it is ready
//! ```
//!
//! Ports that were picked once are kept, so that nodes and workers find their server again after a restart.

mod checks;
mod embedded;
mod metrics;
mod ports;
mod secrets;
mod settings;
mod snapshots;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use longshore_api::{Api, ApiConfig, Limits as ApiLimits};
use longshore_control::{Control, ControlConfig, Metered};
use longshore_log::{
    Log, clock,
    local::{Config as LogConfig, LocalLog},
};
use longshore_region::{Limits as RegionLimits, Region, RegionConfig};
use longshore_schemas::{RegionName, topics};
use longshore_service::{
    durable,
    limits::{self, Limit},
    shutdown, telemetry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{checks::UpChecks, embedded::Buckets, metrics::Sources, ports::Ports, secrets::Secrets, settings::Settings};
use crate::{
    args::UpArgs,
    defaults::{UP_FILE, UpFile, UpRegion},
    error::Error,
    output,
};

/// That each partition has its leader is news where there are several control nodes.
const LOG_FILTER: &str = "info,longshore_runtime::partition=warn";
/// Whose ports are kept besides the regions', which have no slash in their names.
const API: &str = "/api";
const S3: &str = "/s3";
/// Groups of nodes within a region. Fixed for the life of a data folder.
const SHARDS_PER_REGION: u32 = 4;
const MAINTENANCE: Duration = Duration::from_secs(60);

/// Runs until it is told to stop.
pub(crate) async fn run(data: &Path, args: UpArgs) -> Result<(), Error> {
    let settings = Settings::load(&args)?;
    let limits =
        limits::Settings::read(&args.limits, &all_limits()).map_err(|error| Error::Usage(error.to_string()))?;
    telemetry::init(args.log.log_format, LOG_FILTER).map_err(anyhow::Error::from)?;
    let stop = shutdown::signal().map_err(anyhow::Error::from)?;
    std::fs::create_dir_all(data).with_context(|| format!("the data folder {} cannot be made", data.display()))?;
    let data = data.canonicalize().with_context(|| data.display().to_string())?;
    // What an earlier run left there says nothing of this one, which is not ready yet.
    let _ = std::fs::remove_file(data.join(UP_FILE));
    let up = Up::start(&data, &args, &settings, &limits).await?;
    up.serve(&data, stop).await?;
    Ok(())
}

/// Every limit that this process holds.
pub(crate) fn all_limits() -> Vec<&'static Limit> {
    [longshore_api::limits::LIMITS, longshore_control::limits::LIMITS, longshore_region::LIMITS].concat()
}

struct Up {
    log: Arc<LocalLog>,
    buckets: Buckets,
    control: Arc<Control>,
    regions: Vec<(RegionName, Region)>,
    api: Api,
    listener: TcpListener,
    secrets: Secrets,
    /// Ends the roles, in the order that [`Up::serve`] says.
    api_stop: CancellationToken,
    roles_stop: CancellationToken,
}

impl Up {
    async fn start(data: &Path, args: &UpArgs, settings: &Settings, limits: &limits::Settings) -> anyhow::Result<Self> {
        let mut ports = Ports::open(data)?;
        let secrets = Secrets::open(data, &args.regions)?;
        let log = LocalLog::open(LogConfig::new(data.join("log"), topics::ALL))?;
        let metered: Arc<dyn Log> = Metered::new(log.clone());
        let buckets = Buckets::start(data, ports.before(S3, args.s3_listen), &args.regions, &secrets).await?;
        ports.keep(S3, buckets.address()?)?;
        let (api_stop, roles_stop) = (CancellationToken::new(), CancellationToken::new());
        let keys = &secrets.request_keys;
        let state = data.join("state");
        let mut config = ControlConfig::new(metered.clone(), state, args.regions.clone(), keys.clone());
        config.shards_per_region = SHARDS_PER_REGION;
        config.set_limits(limits);
        config.queue.confirm_seconds = settings.worker.confirm.0;
        config.queue.silent_seconds = settings.worker.silence.0;
        config.snapshots = Some(settings.snapshots.config(data, &buckets.main)?);
        let (control, _) = Control::begin(config, &roles_stop).await?;
        let control = Arc::new(control);
        let mut regions = Vec::new();
        for (index, region) in args.regions.iter().enumerate() {
            let listen = ports.before(region.as_str(), nth_port(args.region_listen, index)?);
            let config = RegionConfig {
                region: region.clone(),
                log: metered.clone(),
                main_bucket: buckets.main.clone(),
                bucket: buckets.of(region)?.clone(),
                listen,
                shards_per_region: SHARDS_PER_REGION,
                tokens: secrets.tokens.clone(),
                signer: secrets.signer.clone(),
                request_key: keys.of(region).context("a region without a key")?.clone(),
                data_dir: data.join("regions").join(region.as_str()),
                limits: RegionLimits::of(limits),
            };
            let running = Region::start(config, roles_stop.clone()).await?;
            ports.keep(region.as_str(), running.address())?;
            regions.push((region.clone(), running));
        }
        let checks = UpChecks {
            control: control.clone(),
            log: metered.clone(),
            data: data.to_owned(),
            buckets: buckets.all(),
            regions: regions.iter().map(|(region, running)| (region.clone(), running.connections())).collect(),
        };
        let api = Api::new(ApiConfig {
            log: metered,
            read: control.read_model(),
            main_bucket: buckets.main.clone(),
            regions: args.regions.clone(),
            tokens: secrets.tokens.clone(),
            signer: secrets.signer.clone(),
            request_key: keys.own().clone(),
            limits: ApiLimits { beat_seconds: settings.worker.beat.0, ..ApiLimits::of(limits) },
            checks: Arc::new(checks),
            allow_file_repositories: true,
        });
        let listen = ports.before(API, args.listen);
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("the API cannot listen on {listen}: is another `longshore up` running? Choose another --listen")
        })?;
        ports.keep(API, listener.local_addr()?)?;
        Ok(Self { log, buckets, control, regions, api, listener, secrets, api_stop, roles_stop })
    }

    /// Says that it is ready, serves, and stops in order: first no new requests, then the roles, then what they stand on.
    async fn serve(self, data: &Path, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { log, buckets, control, regions, api, listener, secrets, api_stop, roles_stop } = self;
        let up_file = data.join(UP_FILE);
        let address = listener.local_addr()?;
        let file = UpFile {
            api: format!("http://{address}"),
            s3: buckets.endpoint().to_owned(),
            regions: regions
                .iter()
                .map(|(region, running)| UpRegion { region: region.clone(), address: running.address().to_string() })
                .collect(),
            tokens: secrets.files.clone(),
        };
        durable::write(&up_file, &serde_json::to_vec_pretty(&file)?, durable::SHARED_MODE)?;
        say_ready(&file, &up_file);
        let maintenance = tokio::spawn(maintain(log.clone(), roles_stop.clone()));
        let sources = Sources::new(control.clone(), buckets.counters());
        let router = metrics::with_metrics(api.router(), sources, &secrets.tokens);
        let serving = api.serve_router(router, listener, api_stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            served = &mut serving => served?,
            () = stop.cancelled() => {
                api_stop.cancel();
                serving.await?;
            }
        }
        tracing::info!("the API has stopped");
        roles_stop.cancel();
        for (_, region) in regions {
            region.stopped().await;
        }
        control.stopped().await;
        maintenance.await?;
        tracing::info!("the roles have stopped");
        buckets.shutdown().await;
        log.close();
        // Nothing is there any more that could answer: what other commands read must not say otherwise.
        let _ = std::fs::remove_file(&up_file);
        tracing::info!("the log is closed; stopped");
        Ok(())
    }
}

/// The n-th port from the given one on; port 0 stays open for any.
fn nth_port(mut listen: SocketAddr, index: usize) -> anyhow::Result<SocketAddr> {
    if listen.port() > 0 {
        let port = u16::try_from(index).ok().and_then(|index| listen.port().checked_add(index));
        listen.set_port(port.context("--region-listen leaves too few ports for the regions")?);
    }
    Ok(listen)
}

fn say_ready(up: &UpFile, path: &Path) {
    let tokens: &PathBuf = &up.tokens.admin;
    output::message(&format!("longshore is ready at {}, for browsers too", up.api));
    for region in &up.regions {
        output::message(&format!("  region {} takes nodes at {}", region.region, region.address));
    }
    output::message(&format!("  tokens are in {}", tokens.parent().unwrap_or(path).display()));
    output::message(&format!("  {} tells other commands where it is", path.display()));
}

/// Retention and compaction, now and then.
async fn maintain(log: Arc<LocalLog>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(MAINTENANCE)).await.is_some() {
        if let Err(error) = log.maintain(clock::now()).await {
            tracing::warn!(%error, "the log could not be tidied");
        }
    }
}

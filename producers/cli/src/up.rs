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

mod embedded;
mod ports;
mod settings;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use longshore_api::Api;
use longshore_control::{Control, Metered};
use longshore_log::{
    Log, clock,
    local::{Config as LogConfig, LocalLog},
};
use longshore_region::Region;
use longshore_schemas::{RegionName, topics};
use longshore_service::{
    durable,
    limits::{self, Limit},
    shutdown, telemetry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{embedded::Buckets, ports::Ports, settings::Settings};
use crate::{
    args::UpArgs,
    defaults::{UP_FILE, UpFile, UpRegion, UpTokens},
    error::Error,
    output,
    roles::{
        LOG_FILTER,
        checks::RoleChecks,
        control,
        folder::DataFolder,
        identity,
        metrics::Sources,
        region,
        secrets::{Made, Secrets},
        signing::{self, GOALS, PROVENANCE},
        snapshots::kept_name,
    },
};

/// Whose ports are kept besides the regions', which have no slash in their names.
const API: &str = "/api";
const S3: &str = "/s3";
/// In the data folder: whose log this is, for snapshots.
const INSTALLATION: &str = "installation";
/// As it would be on Kafka.
const TOPIC_PREFIX: &str = "longshore.";
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
    let folder = DataFolder::take(data, "up")?;
    let data = &folder.path;
    // What an earlier run left there says nothing of this one, which is not ready yet.
    let _ = std::fs::remove_file(data.join(UP_FILE));
    let up = Up::start(data, &args, &settings, &limits).await?;
    up.serve(data, stop).await?;
    Ok(())
}

/// Every limit that this process holds.
pub(crate) fn all_limits() -> Vec<&'static Limit> {
    [control::all_limits(), region::all_limits()].concat()
}

struct Up {
    log: Arc<LocalLog>,
    buckets: Buckets,
    control: Arc<Control>,
    regions: Vec<(RegionName, Region)>,
    api: Api,
    listener: TcpListener,
    secrets: Secrets,
    files: UpTokens,
    /// Ends the roles, once the API has ended.
    roles_stop: CancellationToken,
}

impl Up {
    async fn start(data: &Path, args: &UpArgs, settings: &Settings, limits: &limits::Settings) -> anyhow::Result<Self> {
        let mut ports = Ports::open(data)?;
        let Made { secrets, request_keys, files, s3_secret_key } =
            Secrets::make(&data.join("secrets"), &data.join("tokens"), &args.regions)?;
        let log = LocalLog::open(LogConfig::new(data.join("log"), topics::ALL))?;
        let metered: Arc<dyn Log> = Metered::new(log.clone());
        let buckets = Buckets::start(data, ports.before(S3, args.s3_listen), &args.regions, &s3_secret_key).await?;
        ports.keep(S3, buckets.address()?)?;
        let roles_stop = CancellationToken::new();
        let (state_dir, installation) = (data.join("state"), kept_name(data, INSTALLATION, "up")?);
        let parts = control::Parts {
            log: metered.clone(),
            state_dir: &state_dir,
            regions: &args.regions,
            shards_per_region: SHARDS_PER_REGION,
            leases: &settings.worker,
            limits,
            main_bucket: &buckets.main,
            secrets: &secrets,
            request_keys: &request_keys,
            provenance_key: Arc::new(settings.provenance.key(&PROVENANCE, &data.join("secrets"))?),
            goal_key: Arc::new(settings.goals.key(&GOALS, &data.join("secrets"))?),
            snapshots: settings.snapshots.of(installation.clone(), "up", &buckets.main)?,
            retention: &settings.retention,
            installation: &installation,
            allow_file_repositories: true,
            topic_prefix: TOPIC_PREFIX,
        };
        let control = parts.processors(&roles_stop).await?;
        let mut regions = Vec::new();
        for (index, region) in args.regions.iter().enumerate() {
            let parts = region::Parts {
                region,
                log: metered.clone(),
                main_bucket: &buckets.main,
                bucket: buckets.of(region)?,
                listen: ports.before(region.as_str(), nth_port(args.region_listen, index)?),
                shards_per_region: SHARDS_PER_REGION,
                secrets: &data.join("secrets"),
                request_keys: request_keys.of(region).context("a region without a key")?.to_vec(),
                goal_keys: signing::trusted(&GOALS, &data.join("secrets"))?,
                data_dir: data.join("regions").join(region.as_str()),
                limits,
                retention: &settings.retention,
                // All buckets are on one disk here, which would do it twice; and the bytes of each hop are to be seen.
                copies_by_service: false,
            };
            let running = parts.start(&roles_stop).await?;
            ports.keep(region.as_str(), running.address())?;
            regions.push((region.clone(), running));
        }
        let checks = RoleChecks {
            control: control.clone(),
            alone: true,
            log: metered.clone(),
            data: data.to_owned(),
            buckets: buckets.all(),
            regions: regions.iter().map(|(region, running)| (region.clone(), running.connections())).collect(),
        };
        let api = parts.api(&control, checks);
        let listener = control::listen(ports.before(API, args.listen)).await?;
        ports.keep(API, listener.local_addr()?)?;
        Ok(Self { log, buckets, control, regions, api, listener, secrets, files, roles_stop })
    }

    /// Says that it is ready, serves, and stops in order: first no new requests, then the roles, then what they stand on.
    async fn serve(self, data: &Path, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { log, buckets, control, regions, api, listener, secrets, files, roles_stop } = self;
        let up_file = data.join(UP_FILE);
        let address = listener.local_addr()?;
        let file = UpFile {
            api: format!("http://{address}"),
            s3: buckets.endpoint().to_owned(),
            regions: regions
                .iter()
                .map(|(region, running)| UpRegion {
                    region: region.clone(),
                    address: running.address().to_string(),
                    authority: identity::authority(&data.join("secrets"), region).authorities(),
                })
                .collect(),
            tokens: files,
            keys: signing::public_files(&data.join("secrets")),
        };
        durable::write(&up_file, &serde_json::to_vec_pretty(&file)?, durable::SHARED_MODE)?;
        say_ready(&file, &up_file);
        let maintenance = tokio::spawn(maintain(log.clone(), roles_stop.clone()));
        let sources = Sources::new(Some(control.clone()), Some(buckets.counters()));
        let served = control::serve(&api, listener, sources, &secrets, &stop).await;
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
        served
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

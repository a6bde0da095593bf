//! Puts the parts together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use longshore_schemas::{
    NodeId, RackName, ZoneName,
    events::{RegionalGoal, StringMap},
};
use longshore_service::ledger::Ledger;
use longshore_swarm::{Budget, PackStore, fetch::Fetcher, server};
use longshore_swarm_policy::{Caps, fetch::Config as FetchConfig};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error, Folders,
    goals::{GoalKeeper, Goals},
    identity::CertificateKeeper,
    link::{Connector, Exchange, Identity},
    private_file,
    queries::Queries,
    releases::{Kept, Releases},
    reports::Reports,
    service::{Ports, Service, Shared},
    shim::settle,
    takeover::{self, Running},
    trust::Trust,
};

/// Until a service is tried again that could not be opened.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// What a node needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of the region's processes; any will do.
    pub region_addresses: Vec<String>,
    pub data: PathBuf,
    pub node: NodeId,
    pub zone: ZoneName,
    pub rack: RackName,
    pub token_file: Option<PathBuf>,
    /// The certificates of the region's authority.
    pub region_authority: PathBuf,
    /// What people call the machine.
    pub labels: StringMap,
    /// Where this machine is reached by peers and by users of its services.
    pub host: String,
    pub swarm_listen: SocketAddr,
    pub port_base: u16,
    pub trust: Trust,
    /// Between two looks at the files of a release that runs.
    pub drift_interval: Duration,
    /// What it gives the swarm of its link.
    pub upload_caps: Caps,
    pub download_caps: Caps,
    /// What packs and releases may take together, in bytes.
    pub disk_budget: Option<u64>,
}

/// Runs until the shutdown. Services outlive it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    std::fs::create_dir_all(&config.data).map_err(Error::io(&config.data))?;
    let data = config.data.canonicalize().map_err(Error::io(&config.data))?;
    let folders = Folders { data };
    config.trust.check()?;
    let _lock = lock(&folders)?;
    let boot = next_boot(&folders)?;
    let running = Running::begin(&folders)?;
    takeover::collect_children();
    tokio::spawn(takeover::watch_own_trial(folders.clone()));
    let by = if settle() { "by cgroups" } else { "by rlimits alone: no cgroup was delegated to this agent" };
    tracing::info!(by, "services are held to their limits");
    let goals = Arc::new(GoalKeeper::open(&folders.goals(), config.trust.clone())?);
    let packs = folders.packs();
    let store = tokio::task::spawn_blocking(move || PackStore::open(&packs))
        .await
        .map_err(|error| Error::Refused(format!("the pack store cannot be opened: {error}")))??;
    let certificates =
        CertificateKeeper::open(folders.identity(), config.node.clone(), config.region_authority, config.token_file)?;
    let tls = certificates.tls().clone();
    let (uploads, downloads) = (Budget::new(config.upload_caps), Budget::new(config.download_caps));
    let swarm = server::start(store.clone(), config.swarm_listen, tls.clone(), uploads, shutdown.clone()).await?;
    // The second call of a process finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| Error::Refused(error.to_string()));
    let bucket = client(reqwest::Client::builder())?;
    let (exchange, outbox) = Exchange::new();
    let policy = FetchConfig::new(config.node.clone(), config.rack.clone());
    let fetcher = Fetcher::new(store.clone(), policy, bucket, tls, downloads);
    let reports = Reports::default();
    let (kept, trust) = (Kept::new(goals.watch()), config.trust.clone());
    let releases = Releases::open(&folders, fetcher, exchange.clone(), trust, kept, config.disk_budget)?;
    let shared = Arc::new(Shared {
        node: config.node.clone(),
        zone: config.zone.clone(),
        host: config.host.clone(),
        folders: folders.clone(),
        goals: goals.clone(),
        releases,
        reports: reports.clone(),
        // A proxy for the bucket has no part in whether a service of this machine answers, nor have the world's authorities.
        http: client(
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).tls_certs_only([]),
        )?,
        ports: Ports::new(config.port_base),
        drift_interval: config.drift_interval,
        began: Instant::now(),
    });
    let identity = Identity {
        region_addresses: config.region_addresses,
        node: config.node,
        zone: config.zone,
        rack: config.rack,
        host: config.host,
        labels: config.labels,
        swarm_port: swarm.port(),
        boot,
        instance: format!("{:016x}", rand::random::<u64>()),
    };
    let queries = Queries::new(identity.node.clone(), folders.clone(), config.trust.clone());
    let connector = Connector {
        identity,
        certificates,
        running,
        folders: folders.clone(),
        goals: goals.clone(),
        reports,
        exchange,
        queries,
        outbox,
        store,
        refused: BTreeMap::new(),
    };
    let tasks = TaskTracker::new();
    tasks.spawn(connector.run(shutdown.clone()));
    serve(&goals, &shared, &tasks, &shutdown).await;
    tasks.close();
    tasks.wait().await;
    tracing::info!("stopped; services go on");
    Ok(())
}

/// Starts a task for each service as its first goal comes. A service that cannot be opened is reported and left alone.
async fn serve(goals: &GoalKeeper, shared: &Arc<Shared>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let mut changes = goals.watch();
    let mut started = BTreeSet::new();
    loop {
        let held: Goals = changes.borrow_and_update().clone();
        let new = held.values().filter(|goal| !started.contains(&goal.service));
        // All are opened before one runs: what one has on disk or uses as port is not another's to take.
        let opened: Vec<_> = new.map(|goal| (goal, Service::open(goal, shared.clone()))).collect();
        let mut is_whole = true;
        for (RegionalGoal { service, version, .. }, opened) in opened {
            match opened {
                Ok(opened) => {
                    started.insert(service.clone());
                    tasks.spawn(opened.run(goals.watch(), shutdown.clone()));
                }
                Err(error) => {
                    is_whole = false;
                    tracing::error!(%service, %error, "the service cannot be opened; trying again");
                    let trouble = format!("the service cannot be opened: {}", error.whole());
                    shared.reports.trouble(service, *version, Some(trouble));
                }
            }
        }
        let again = async {
            match is_whole {
                true => std::future::pending().await,
                false => tokio::time::sleep(OPEN_AGAIN).await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = again => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One agent to a folder.
pub fn lock(folders: &Folders) -> Result<File, Error> {
    let path = folders.data.join("node.lock");
    let file = private_file(&path).map_err(Error::io(&path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Error::Refused(format!("another longshore-node runs in {}", folders.data.display())))?;
    Ok(file)
}

fn next_boot(folders: &Folders) -> Result<u64, Error> {
    let mut ledger = Ledger::open(folders.data.join("boot.json"), BTreeMap::from([("boot".to_owned(), 0u64)]))?;
    let boot = ledger.content().get("boot").copied().unwrap_or(0) + 1;
    ledger.store(BTreeMap::from([("boot".to_owned(), boot)]))?;
    Ok(boot)
}

//! The region role, in `longshore up` for each region, and in `longshore region` for one, on Kafka.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use longshore_log::Log;
use longshore_region::{Limits as RegionLimits, Region, RegionConfig};
use longshore_s3::Bucket;
use longshore_schemas::{RegionName, auth::RequestKey};
use longshore_service::{
    limits::{self, Limit},
    metrics as service_metrics, shutdown, telemetry,
};
use longshore_signing::TrustedKeys;
use tokio_util::sync::CancellationToken;

use super::{
    LOG_FILTER,
    folder::DataFolder,
    identity,
    metrics::Sources,
    retention::RetentionSettings,
    secrets,
    settings::{Checked, Role, Settings},
    signing::{self, GOALS},
    stores,
};
use crate::{args::RoleArgs, error::Error, output};

/// What a region is made of.
#[derive(Clone)]
pub(crate) struct Parts<'a> {
    pub(crate) region: &'a RegionName,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) main_bucket: &'a Bucket,
    pub(crate) bucket: &'a Bucket,
    pub(crate) listen: SocketAddr,
    pub(crate) shards_per_region: u32,
    /// The folder of secrets.
    pub(crate) secrets: &'a Path,
    pub(crate) request_keys: Vec<RequestKey>,
    pub(crate) goal_keys: TrustedKeys,
    pub(crate) data_dir: PathBuf,
    pub(crate) limits: &'a limits::Settings,
    pub(crate) retention: &'a RetentionSettings,
    /// Whether a service that has both buckets copies by itself.
    pub(crate) copies_by_service: bool,
}

impl Parts<'_> {
    /// Starts it; it ends with `stop`.
    pub(crate) async fn start(self, stop: &CancellationToken) -> Result<Region, longshore_region::Error> {
        let config = RegionConfig {
            region: self.region.clone(),
            log: self.log,
            main_bucket: self.main_bucket.clone(),
            bucket: self.bucket.clone(),
            listen: self.listen,
            shards_per_region: self.shards_per_region,
            tokens_file: secrets::token_list(self.secrets),
            authority: identity::authority(self.secrets, self.region),
            request_keys: self.request_keys,
            goal_keys: self.goal_keys,
            data_dir: self.data_dir,
            limits: RegionLimits {
                copies_by_service: self.copies_by_service,
                collect_interval: self.retention.every(),
                collection: self.retention.collected(),
                ..RegionLimits::of(self.limits)
            },
        };
        Region::start(config, stop.clone()).await
    }
}

/// The limits of this role.
pub(crate) fn all_limits() -> Vec<&'static Limit> {
    longshore_region::LIMITS.to_vec()
}

/// `longshore region`
pub(crate) async fn run(data: &Path, args: RoleArgs) -> Result<(), Error> {
    let checked = Settings::load(&args, data, Role::Region, &crate::up::all_limits())?;
    telemetry::init(args.log.log_format, LOG_FILTER).map_err(anyhow::Error::from)?;
    let stop = shutdown::signal().map_err(anyhow::Error::from)?;
    Ok(run_checked(checked, stop).await?)
}

async fn run_checked(checked: Checked, stop: CancellationToken) -> anyhow::Result<()> {
    let Checked { settings, limits } = checked;
    let data = DataFolder::take(&settings.data, "region")?;
    let secrets = settings.secrets();
    if let Some(listen) = settings.region.metrics_listen {
        let sources = Sources::new(None, None);
        service_metrics::serve_text(listen, Arc::new(move || sources.of_process()), stop.clone()).await?;
    }
    let create = settings.s3.create_buckets;
    let Some(main) = stores::bucket(&settings.main_bucket()?, create, &stop).await? else { return Ok(()) };
    let Some(own) = stores::bucket(&settings.own_bucket()?, create, &stop).await? else { return Ok(()) };
    let region = settings.region_name()?;
    let Some(connected) = stores::log(settings.log(Role::Region), &stop).await? else { return Ok(()) };
    let parts = Parts {
        region,
        log: connected.log.clone(),
        main_bucket: &main,
        bucket: &own,
        listen: settings.region.listen,
        shards_per_region: settings.shards_per_region,
        secrets: &secrets,
        request_keys: secrets::region_keys(&secrets, region)?,
        goal_keys: signing::trusted(&GOALS, &secrets)?,
        data_dir: data.path.clone(),
        limits: &limits,
        retention: &settings.retention,
        copies_by_service: settings.region.copies_by_service,
    };
    let Some(running) = stores::region(&parts, &stop).await? else { return Ok(()) };
    output::message(&format!("longshore region {region} takes nodes at {}", running.address()));
    stop.cancelled().await;
    running.stopped().await;
    tracing::info!("the region has stopped");
    connected.close().await;
    Ok(())
}

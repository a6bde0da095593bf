//! `longshore worker`

use longshore_service::{metrics, shutdown, telemetry};
use longshore_worker::{GitLimits, GuardProgram, Worker, WorkerConfig};

use crate::{
    args::{Connection, WorkerArgs},
    defaults::{Speaker, Target},
    error::Error,
};

pub(super) async fn run(connection: &Connection, args: WorkerArgs) -> Result<(), Error> {
    telemetry::init(args.log.log_format, "info").map_err(anyhow::Error::new)?;
    let Target { api, token, .. } = Target::find(connection, Speaker::Worker)?;
    let token = token.ok_or_else(|| {
        Error::Usage(
            "a worker needs a token: give --token-file, or --data of the `longshore up` it belongs to".to_owned(),
        )
    })?;
    let config = WorkerConfig {
        api,
        token,
        queues: args.queues,
        name: args.name,
        work_dir: args.work_dir,
        passthrough: args.passthrough,
        allow_file_repositories: args.allow_file_repositories,
        git: GitLimits { repositories_max: args.repositories_max.into(), ..GitLimits::default() },
        guard: GuardProgram::default(),
    };
    let shutdown = shutdown::signal().map_err(anyhow::Error::new)?;
    if let Some(listen) = args.metrics_listen {
        metrics::serve(listen, shutdown.clone()).await.map_err(anyhow::Error::new)?;
    }
    match Worker::run(config, shutdown).await {
        Err(longshore_worker::Error::NotAccepted(error) | longshore_worker::Error::Client(error)) => Err(error.into()),
        result => result.map_err(|error| Error::Other(error.into())),
    }
}

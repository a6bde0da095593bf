//! `longshore s3`: the embedded S3 server as a process of its own, for tests, demonstrations and trying things out.

use std::sync::Arc;

use longshore_s3::embedded::{Config, Server};
use longshore_service::{metrics as service_metrics, shutdown, telemetry};

use super::{LOG_FILTER, metrics::Sources, settings::read_key};
use crate::{args::S3Args, error::Error, output};

pub(crate) async fn run(args: S3Args) -> Result<(), Error> {
    let secret_key = read_key(&args.secret_key_file).map_err(|error| Error::Usage(error.to_string()))?;
    telemetry::init(args.log.log_format, LOG_FILTER).map_err(anyhow::Error::from)?;
    let stop = shutdown::signal().map_err(anyhow::Error::from)?;
    let config = Config { root: args.folder, listen: args.listen, access_key: args.access_key, secret_key };
    let server = Server::start(config).await.map_err(anyhow::Error::from)?;
    if let Some(listen) = args.metrics_listen {
        let sources = Sources::new(None, Some(server.counters().clone()));
        let text = Arc::new(move || sources.of_process());
        service_metrics::serve_text(listen, text, stop.clone()).await.map_err(anyhow::Error::from)?;
    }
    output::message(&format!("buckets are served at {}", server.endpoint()));
    stop.cancelled().await;
    server.shutdown().await;
    Ok(())
}

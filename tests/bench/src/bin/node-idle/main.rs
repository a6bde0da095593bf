//! `make bench-node-idle`: what an agent costs a machine whose five services run, when nothing is to be done.

#![allow(clippy::print_stderr, reason = "progress, for whoever waits")]

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use longshore_bench::{Goal, Report, Usage};
use longshore_e2e::{Cluster, quick::Quick};
use longshore_node::shim::Shim;
use longshore_schemas::{
    ArtifactId,
    http::{DeployBody, RolloutStatus, ServiceView},
};

const SERVICES: usize = 5;
const BOUND: Duration = Duration::from_secs(120);
/// After the last deployment, until all has calmed down.
const CALM: Duration = Duration::from_secs(15);

#[derive(Parser)]
struct Arguments {
    /// Ten minutes instead of one and a half
    #[arg(long)]
    full: bool,
}

fn main() -> Result<ExitCode> {
    let Arguments { full } = Arguments::parse();
    let lasts = Duration::from_secs(if full { 600 } else { 90 });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(lasts))?;
    let mut report = Report::new("node-idle");
    report.figure("idle_rss_mib", figures.rss_mib, Goal::AtMost(15.0));
    report.figure("idle_cpu_percent", figures.cpu_percent, Goal::AtMost(0.2));
    report.figure("shims_rss_mib", figures.shims_rss_mib, Goal::None);
    report.figure("shims_cpu_percent", figures.shims_cpu_percent, Goal::None);
    report.figure("services", SERVICES as f64, Goal::None);
    report.figure("seconds", lasts.as_secs_f64(), Goal::None);
    report.print();
    Ok(ExitCode::SUCCESS)
}

struct Figures {
    /// Of the agent alone.
    rss_mib: f64,
    cpu_percent: f64,
    /// Of the processes that own a service each, all together.
    shims_rss_mib: f64,
    shims_cpu_percent: f64,
}

async fn measure(lasts: Duration) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    cluster.start_workers(1)?;
    cluster.start_nodes(1).await?;
    let artifact = artifact(&cluster).await?;
    for number in 1..=SERVICES {
        let service = format!("service-{number}");
        cluster.client.deploy(&service, &DeployBody { artifact, plan: None }).await?;
        let runs = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
        cluster.client.service_when(&service, "to run", BOUND, runs).await?;
    }
    eprintln!("node-idle: {SERVICES} services run; looking for {} s", lasts.as_secs());
    tokio::time::sleep(CALM).await;
    let node = cluster.nodes.first().context("a node")?;
    let agent = node.process.pid().to_string();
    let services = (1..=SERVICES).map(|number| Shim::of(&node.folder.join(format!("services/service-{number}"))));
    let shims: Vec<String> = services.filter_map(|shim| Some(shim.status()?.shim_pid.to_string())).collect();
    ensure!(shims.len() == SERVICES, "{} shims run", shims.len());
    let used = |process: &String| Usage::of(process).with_context(|| format!("process {process} has ended"));
    let all = || -> Result<(Usage, Vec<Usage>)> { Ok((used(&agent)?, shims.iter().map(used).collect::<Result<_>>()?)) };
    let before = all()?;
    tokio::time::sleep(lasts).await;
    let after = all()?;
    cluster.stop()?;
    let percent = |before: f64, after: f64| (after - before) / lasts.as_secs_f64() * 100.0;
    let cpu = |usages: &[Usage]| usages.iter().map(|usage| usage.cpu_seconds).sum();
    Ok(Figures {
        rss_mib: after.0.rss_mib,
        cpu_percent: percent(before.0.cpu_seconds, after.0.cpu_seconds),
        shims_rss_mib: after.1.iter().map(|usage| usage.rss_mib).sum(),
        shims_cpu_percent: percent(cpu(&before.1), cpu(&after.1)),
    })
}

/// A small server, built and in its region.
async fn artifact(cluster: &Cluster) -> Result<ArtifactId> {
    let quick = Quick::create(&cluster.folder.join("repository"))?;
    let build = quick.build("default", "server", quick.commit("one")?, "true")?;
    cluster.client.publish(&build, BOUND).await
}

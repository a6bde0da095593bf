//! `longshore log verify`: whether a log is whole, and its projections say what it says. A server that runs looks itself, and
//! streams what it found; of a `longshore up` that is stopped the data folder is read here, and so is a log on Kafka that no control
//! node serves.

use std::path::Path;

use longshore_control::verify::{Report, verify, verify_running};
use longshore_log::{
    kafka::KafkaLog,
    local::{Config as LogConfig, LocalLog},
};
use longshore_schemas::topics;
use longshore_worker::client::{self, Client};

use super::tail::{Event, Parser};
use crate::{
    args::{Connection, VerifyArgs},
    defaults::{Speaker, Target, UpFile},
    error::Error,
    output::{self, Format},
    roles::settings::Settings,
};

/// Asks the server, if one was named or runs on the data folder; otherwise reads the folder.
pub(super) async fn run(connection: &Connection, args: &VerifyArgs, format: Format) -> Result<(), Error> {
    if args.config.is_some() || !args.set.is_empty() {
        return on_kafka(args, format).await;
    }
    if connection.api.is_some() || UpFile::read(&connection.data)?.is_some() {
        let client = Target::find(connection, Speaker::Person)?.client()?;
        let where_it_is = client.base().to_string();
        let report = match ask(&client).await {
            // What a killed one left says that it runs.
            Err(Error::Server(client::Error::Unreachable { .. })) if connection.api.is_none() => {
                return stopped(&connection.data, format).await;
            }
            answered => answered?,
        };
        return show(&report, format, &format!("of {where_it_is}"), "Start nothing anew, and call for help");
    }
    stopped(&connection.data, format).await
}

/// The answer comes when the whole log was read; until then the server shows that it is at work.
async fn ask(client: &Client) -> Result<Report, Error> {
    let mut response = client.get(&["verify"]).stream().await?;
    let mut parser = Parser::default();
    let broken = |error: reqwest::Error| Error::Other(anyhow::Error::new(error).context("the answer broke off"));
    while let Some(piece) = response.chunk().await.map_err(broken)? {
        let Some(Event { kind, data }) = parser.push(&piece).pop() else { continue };
        let unreadable =
            |error: serde_json::Error| Error::Other(anyhow::Error::new(error).context("the server's report"));
        if kind == "Report" {
            return serde_json::from_str(&data).map_err(unreadable);
        }
        let failed: serde_json::Value = serde_json::from_str(&data).map_err(unreadable)?;
        let reason = failed.get("error").and_then(serde_json::Value::as_str).unwrap_or("it does not say why");
        return Err(Error::Refused(format!("the server cannot read the log: {reason}")));
    }
    Err(Error::Refused("the server stopped before it had read the log; ask again".to_owned()))
}

/// Reads from the brokers what is there. Anybody may write meanwhile, so it is read as of a server that runs; there are no
/// projections here.
async fn on_kafka(args: &VerifyArgs, format: Format) -> Result<(), Error> {
    let other = |error: longshore_log::Error| Error::Other(error.into());
    let config = Settings::load_log(args.config.as_deref(), &args.set)?;
    let place = format!("on Kafka at {}", config.brokers);
    let log = KafkaLog::connect(config).await.map_err(other)?;
    let report = verify_running(&*log, || Ok(Vec::new())).await.map_err(|error| Error::Other(error.into()))?;
    log.close().await;
    show(&report, format, &place, "Start nothing anew, and call for help")
}

/// Works on the folder of a `longshore up` that does not run: the log has one user at a time.
async fn stopped(data: &Path, format: Format) -> Result<(), Error> {
    let folder = data.join("log");
    // Opening would make a new, empty log, which is whole.
    if !folder.join("CURRENT").is_file() {
        let folder = folder.display();
        return Err(Error::Refused(format!(
            "there is no log in {folder}: name the data folder of `longshore up` with --data"
        )));
    }
    let log = match LocalLog::open(LogConfig::new(&folder, topics::ALL)) {
        Err(longshore_log::Error::InUse { .. }) => {
            return Err(Error::Refused(format!(
                "`longshore up` runs on {}, and a log has one user at a time: stop it (SIGTERM), verify, start it again; \
                 or verify a copy of the folder that was made while it was stopped",
                data.display()
            )));
        }
        opened => opened.map_err(|error| Error::Other(error.into()))?,
    };
    let report = verify(&*log, Some(&data.join("state"))).await.map_err(|error| Error::Other(error.into()))?;
    log.close();
    let advice = "Keep the folder as it is, start nothing on it, and restore a copy";
    show(&report, format, &format!("in {}", folder.display()), advice)
}

fn show(report: &Report, format: Format, place: &str, advice: &str) -> Result<(), Error> {
    match format {
        Format::Json => output::json(report)?,
        Format::Table => output::data(&text(report))?,
    }
    if report.is_clean() {
        return Ok(());
    }
    Err(Error::Failed(format!("the log {place} is not whole: {} found. {advice}", faults(report.faults_total))))
}

fn faults(count: u64) -> String {
    format!("{count} fault{}", if count == 1 { "" } else { "s" })
}

/// What was read, and each fault on a line of its own.
fn text(report: &Report) -> String {
    let rows = report.partitions.iter().map(|partition| {
        let place = format!("{}/{}", partition.topic, partition.partition);
        let numbers =
            [partition.facts, partition.transactions, partition.outputs, partition.refusals, partition.waiting];
        std::iter::once(place).chain(numbers.map(|number| number.to_string())).collect()
    });
    let mut text =
        output::table(&["partition", "facts", "transactions", "outputs", "refusals", "waiting"], rows.collect());
    text += &format!(
        "\n\n{} requests, {} dead letters; {} projections compared with a replay from the first fact",
        report.requests, report.dead_letters, report.projections
    );
    if report.is_clean() {
        return text + "\nwhole: no gap, no duplicate, no torn output";
    }
    text += &format!("\n\n{}:", faults(report.faults_total));
    for fault in &report.faults {
        let offset = fault.offset.map_or_else(String::new, |offset| format!(", offset {offset}"));
        text += &format!("\n{:12} {}/{}{offset}: {}", fault.kind, fault.topic, fault.partition, fault.what);
    }
    let told = report.faults.len() as u64;
    if told < report.faults_total {
        text += &format!("\n… and {} more", report.faults_total - told);
    }
    text
}

#[cfg(test)]
mod tests {
    use longshore_control::verify::{Fault, FaultKind, PartitionReport};

    use super::*;

    #[test]
    fn a_fault_says_where_and_what() {
        let partition = PartitionReport {
            topic: "builds".to_owned(),
            partition: 2,
            facts: 12,
            transactions: 4,
            outputs: 6,
            refusals: 1,
            waiting: 0,
        };
        let mut report = Report {
            partitions: vec![partition],
            requests: 9,
            dead_letters: 0,
            projections: 28,
            faults: Vec::new(),
            faults_total: 0,
        };
        assert!(text(&report).ends_with("whole: no gap, no duplicate, no torn output"), "{}", text(&report));
        let what = "2 facts are missing before sequence 9".to_owned();
        report.faults =
            vec![Fault { kind: FaultKind::Gap, topic: "builds".into(), partition: 2, offset: Some(7), what }];
        report.faults_total = 3;
        let shown = text(&report);
        assert!(shown.contains("gap          builds/2, offset 7: 2 facts are missing before sequence 9"), "{shown}");
        assert!(shown.ends_with("… and 2 more"), "{shown}");
    }

    #[tokio::test]
    async fn a_folder_without_a_log_stays_without_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = stopped(folder.path(), Format::Json).await.expect_err("there is none");
        assert!(matches!(&error, Error::Refused(text) if text.contains("--data")), "{error}");
        assert!(!folder.path().join("log").exists());
    }

    #[tokio::test]
    async fn a_log_that_is_in_use_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = LocalLog::open(LogConfig::new(folder.path().join("log"), topics::ALL)).expect("opens");
        let error = stopped(folder.path(), Format::Json).await.expect_err("it is in use");
        assert!(matches!(&error, Error::Refused(text) if text.contains("stop it")), "{error}");
        log.close();
        stopped(folder.path(), Format::Json).await.expect("an empty log is whole");
    }
}

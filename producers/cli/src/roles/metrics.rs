//! `/metrics`, for Prometheus: what every role of the process counts, and what went through the embedded S3 server, if it is in
//! this process. At the API, any token may read.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};
use longshore_control::Control;
use longshore_log::kafka::{Client, Figures, KafkaLog};
use longshore_s3::embedded::{Counters as S3Counters, Traffic};
use longshore_service::{
    metrics::{self, Gauges},
    tokens::Tokens,
};

/// What is looked up when the metrics are read.
pub(crate) struct Sources {
    control: Option<Arc<Control>>,
    s3: Option<S3Counters>,
    kafka: Option<(Arc<KafkaLog>, KafkaGauges)>,
    memory: Gauges<0>,
    files: Gauges<0>,
}

impl Sources {
    pub(crate) fn new(control: Option<Arc<Control>>, s3: Option<S3Counters>) -> Self {
        let memory = Gauges::new("process_resident_memory_bytes", "Memory of this process", []);
        let files = Gauges::new("process_open_fds", "Open files and connections of this process", []);
        Self { control, s3, kafka: None, memory, files }
    }

    /// With what the clients of Kafka count.
    pub(crate) fn with_kafka(self, log: &Arc<KafkaLog>) -> Self {
        Self { kafka: Some((log.clone(), KafkaGauges::new())), ..self }
    }

    async fn text(&self) -> String {
        if let Some(control) = &self.control {
            control.show_metrics().await;
        }
        self.of_process()
    }

    /// Everything but the levels that the processors have to be asked for.
    pub(crate) fn of_process(&self) -> String {
        self.memory.set([], resident_bytes().unwrap_or(0));
        self.files.set([], std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64));
        if let Some((log, gauges)) = &self.kafka {
            gauges.show(&log.figures());
        }
        match &self.s3 {
            Some(s3) => with_traffic(&metrics::text(), s3),
            None => metrics::text(),
        }
    }
}

/// librdkafka's statistics, summed over the clients that do the same.
struct KafkaGauges {
    counts: Vec<(Gauges<1>, Figure)>,
}

type Figure = fn(&Figures) -> u64;

impl KafkaGauges {
    fn new() -> Self {
        let rows: [(&'static str, &'static str, Figure); 9] = [
            ("longshore_kafka_clients", "Clients of Kafka, by what they do", |of| of.clients),
            ("longshore_kafka_queued_messages", "Messages that wait in clients", |of| of.queued_messages),
            ("longshore_kafka_queued_bytes", "Bytes that wait in clients", |of| of.queued_bytes),
            ("longshore_kafka_sent_bytes", "Bytes sent by the clients there are", |of| of.sent_bytes),
            ("longshore_kafka_received_bytes", "Bytes received by the clients there are", |of| of.received_bytes),
            ("longshore_kafka_requests", "Requests sent by the clients there are", |of| of.requests),
            ("longshore_kafka_request_errors", "Requests that failed", |of| of.request_errors + of.timeouts),
            ("longshore_kafka_connects", "Connections made by the clients there are", |of| of.connects),
            ("longshore_kafka_round_trip_microseconds", "To the slowest broker, mean of 5 s", |of| {
                (of.round_trip_seconds * 1e6) as u64
            }),
        ];
        let counts = rows.into_iter().map(|(name, help, figure)| (Gauges::new(name, help, ["client"]), figure));
        Self { counts: counts.collect() }
    }

    fn show(&self, figures: &BTreeMap<Client, Figures>) {
        for (gauges, figure) in &self.counts {
            for (client, of) in figures {
                gauges.set([client.name()], figure(of));
            }
        }
    }
}

pub(crate) fn with_metrics(router: Router, sources: Sources, tokens: &Tokens) -> Router {
    let (tokens, sources) = (tokens.clone(), Arc::new(sources));
    let answer = async move |headers: HeaderMap| {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        match token.and_then(|token| tokens.verify(token)) {
            Some(_) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], sources.text().await).into_response(),
            None => (StatusCode::UNAUTHORIZED, "give a token: Authorization: Bearer …\n".to_owned()).into_response(),
        }
    };
    Router::new().route("/metrics", get(answer)).merge(router)
}

/// Of this process, as Linux tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Puts the S3 server's counts, which it keeps itself, before the end of the text.
fn with_traffic(text: &str, counters: &S3Counters) -> String {
    use std::fmt::Write as _;
    type Figure = fn(&Traffic) -> u64;
    const END: &str = "# EOF\n";
    let figures: [(&str, &str, Figure); 4] = [
        ("longshore_s3_gets", "Objects read.", |traffic| traffic.gets),
        ("longshore_s3_get_bytes", "Bytes of objects read.", |traffic| traffic.get_bytes),
        ("longshore_s3_puts", "Objects stored.", |traffic| traffic.puts),
        ("longshore_s3_put_bytes", "Bytes of objects stored.", |traffic| traffic.put_bytes),
    ];
    let all = counters.all();
    let mut text = text.strip_suffix(END).unwrap_or(text).to_owned();
    for (name, help, figure) in figures {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for ((bucket, prefix), traffic) in &all {
            let _ = writeln!(text, "{name}_total{{bucket={bucket:?},prefix={prefix:?}}} {}", figure(traffic));
        }
    }
    text + END
}

//! `/metrics` of `longshore up`: what went through the embedded S3 server, in Prometheus' text format. Any token may read.

use std::fmt::Write as _;

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::get,
};
use longshore_s3::embedded::{Counters, Traffic};
use longshore_service::tokens::Tokens;

pub(super) fn with_metrics(router: Router, counters: Counters, tokens: &Tokens) -> Router {
    let tokens = tokens.clone();
    let answer = async move |headers: HeaderMap| {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        match token.and_then(|token| tokens.verify(token)) {
            Some(_) => (StatusCode::OK, text(&counters)),
            None => (StatusCode::UNAUTHORIZED, "give a token: Authorization: Bearer …\n".to_owned()),
        }
    };
    Router::new().route("/metrics", get(answer)).merge(router)
}

fn text(counters: &Counters) -> String {
    type Figure = fn(&Traffic) -> u64;
    let figures: [(&str, &str, Figure); 4] = [
        ("longshore_s3_gets_total", "Objects read.", |traffic| traffic.gets),
        ("longshore_s3_get_bytes_total", "Bytes of objects read.", |traffic| traffic.get_bytes),
        ("longshore_s3_puts_total", "Objects stored.", |traffic| traffic.puts),
        ("longshore_s3_put_bytes_total", "Bytes of objects stored.", |traffic| traffic.put_bytes),
    ];
    let all = counters.all();
    let mut text = String::new();
    for (name, help, figure) in figures {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for ((bucket, prefix), traffic) in &all {
            let _ = writeln!(text, "{name}{{bucket={bucket:?},prefix={prefix:?}}} {}", figure(traffic));
        }
    }
    text
}

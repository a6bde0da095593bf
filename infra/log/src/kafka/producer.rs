//! Producers of either kind: how a record is handed to librdkafka, and how its delivery report comes back.

use rdkafka::{
    ClientConfig, Message,
    config::FromClientConfigAndContext,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, NoCustomPartitioner, ProducerContext, ThreadedProducer},
    util::IntoOpaque,
};

use super::{client::Context, topics::Topic};
use crate::{Error, Record};

/// Hears what became of each message.
pub(super) trait Report: Send + Sync + 'static {
    /// What comes back with a message's report.
    type Ticket: IntoOpaque;

    /// The message has this offset, or was not delivered.
    fn report(&self, result: Result<u64, KafkaError>, ticket: Self::Ticket);
}

/// A producer with a thread of its own, on which reports come.
pub(super) type Reported<R> = ThreadedProducer<Context<R>>;

pub(super) fn start<R: Report>(config: &ClientConfig, context: Context<R>) -> Result<Reported<R>, Error> {
    ThreadedProducer::from_config_and_context(config, context)
        .map_err(|error| Error::kafka("starting a producer", error))
}

impl<R: Report> ProducerContext<NoCustomPartitioner> for Context<R> {
    type DeliveryOpaque = R::Ticket;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: R::Ticket) {
        let result = match result {
            Ok(message) => Ok(message.offset().max(0) as u64),
            Err((error, _)) => Err(error.clone()),
        };
        self.own.report(result, ticket);
    }
}

/// A record as librdkafka takes it.
pub(super) fn outgoing<'a, T: IntoOpaque>(
    topic: &'a Topic,
    partition: u32,
    record: &'a Record,
    ticket: T,
) -> BaseRecord<'a, [u8], [u8], T> {
    let mut out =
        BaseRecord::with_opaque_to(topic.kafka.as_str(), ticket).partition(partition as i32).key(record.key.as_ref());
    if let Some(value) = &record.value {
        out = out.payload(value.as_ref());
    }
    if !record.headers.is_empty() {
        let empty = OwnedHeaders::new_with_capacity(record.headers.len());
        let headers = record
            .headers
            .iter()
            .fold(empty, |headers, (name, value)| headers.insert(Header { key: name, value: Some(value.as_ref()) }));
        out = out.headers(headers);
    }
    out
}

//! A processor together with how its events stand on their topics.

use longshore_planted::{Bug, planted};
use longshore_processor::{Outgoing, Processor, Seen, StateError, StoreMut};
use longshore_schemas::{
    RequestId, Timestamp,
    codec::{self, CodecError, Message},
    events::{Event, Fact, GoalState, ReportOrder, Request, Trigger},
};

/// Every processor whose events have a schema.
pub trait Wire: Processor {
    fn decode_request(bytes: &[u8]) -> Result<Request<Self::Request>, CodecError>;
    fn decode_signal(bytes: &[u8]) -> Result<Request<Self::Signal>, CodecError>;
    fn decode_fact(bytes: &[u8]) -> Result<Fact<Self::Fact>, CodecError>;
    fn encode_fact(fact: &Fact<Self::Fact>) -> Result<Vec<u8>, CodecError>;
}

impl<P: Processor> Wire for P
where
    Request<P::Request>: Message,
    Request<P::Signal>: Message,
    Fact<P::Fact>: Message,
{
    fn decode_request(bytes: &[u8]) -> Result<Request<Self::Request>, CodecError> {
        codec::decode(bytes)
    }

    fn decode_signal(bytes: &[u8]) -> Result<Request<Self::Signal>, CodecError> {
        codec::decode(bytes)
    }

    fn decode_fact(bytes: &[u8]) -> Result<Fact<Self::Fact>, CodecError> {
        codec::decode(bytes)
    }

    fn encode_fact(fact: &Fact<Self::Fact>) -> Result<Vec<u8>, CodecError> {
        codec::encode(fact)
    }
}

/// What a committed or about-to-be-committed fact does to State: the one definition for leader, follower and replay.
pub(crate) fn apply_fact<P: Processor>(state: &mut dyn StoreMut, fact: &Fact<P::Fact>) -> Result<(), StateError> {
    P::evolve(state, fact)?;
    match &fact.cause.trigger {
        // Signals are not remembered: they come again and again, and the processor recognises them itself.
        Trigger::Consumed(_) if planted(Bug::ForgetSeen) => Ok(()),
        Trigger::Consumed(consumed) if consumed.topic == P::Request::TOPIC.name => {
            Seen::evolve(state, &fact.cause, fact.at)
        }
        Trigger::Consumed(_) | Trigger::TimerFired(_) => Ok(()),
    }
}

/// Who sends an outgoing request, and where it stands among what that sender sent.
pub(crate) struct Sender<'a> {
    pub(crate) processor: &'static str,
    pub(crate) partition: u32,
    /// The first fact sequence of the transaction, which no other transaction has.
    pub(crate) transaction: u64,
    /// The place within the transaction.
    pub(crate) index: u64,
    pub(crate) at: Timestamp,
    pub(crate) trace: Option<&'a str>,
}

/// An outgoing request on its way: topic, key, bytes.
pub(crate) type Encoded = (&'static str, String, Vec<u8>);

pub(crate) fn encode_outgoing(outgoing: Outgoing, sender: &Sender<'_>) -> Result<Encoded, CodecError> {
    match outgoing {
        Outgoing::Artifact(event) => encode_event(event, sender),
        Outgoing::Goal(event) => encode_event(event, sender),
        Outgoing::Fleet(event) => encode_event(event, sender),
        Outgoing::GoalState(event) => encode_event(GoalState::from(event), sender),
    }
}

/// Outgoing requests are ordered by their sender, so the receiver remembers one place per sender and not every id.
fn encode_event<E: Event>(event: E, sender: &Sender<'_>) -> Result<Encoded, CodecError>
where
    Request<E>: Message,
{
    let Sender { processor, partition, transaction, index, at, trace } = sender;
    let id: RequestId = format!("{processor}-{partition}-{transaction}-{index}")
        .parse()
        .expect("a processor's name and three numbers have no spaces and fit");
    let key = event.key();
    let request = Request {
        id,
        at: *at,
        actor: (*processor).to_owned(),
        trace: trace.map(str::to_owned),
        report: Some(ReportOrder { sender: format!("{processor}-{partition}"), boot: *transaction, sequence: *index }),
        event,
    };
    Ok((E::TOPIC.name, key, codec::encode(&request)?))
}

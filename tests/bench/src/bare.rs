//! The bare client: librdkafka with the settings that every comparison uses.

use anyhow::{Result, anyhow};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
};

/// A client's settings, to be added to.
pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("socket.nagle.disable", "true");
    config
}

/// Makes a topic. Must not be called from within a runtime's worker that has to go on meanwhile.
pub fn create(brokers: &str, topic: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<_> = client(brokers).create()?;
    let new =
        [NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime")];
    let options = AdminOptions::new();
    let created = admin.create_topics(&new, &options);
    let wait =
        || tokio::runtime::Builder::new_current_thread().enable_all().build().map(|runtime| runtime.block_on(created));
    let created =
        std::thread::scope(|scope| scope.spawn(wait).join()).map_err(|_| anyhow!("the wait panicked"))???;
    created.into_iter().try_for_each(|result| result.map(drop).map_err(|(topic, code)| anyhow!("{topic}: {code}")))
}

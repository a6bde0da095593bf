import java.io.File;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.Stores;

/**
 * The comparator of `make bench-processor`: numbers the jobs of each queue in RocksDB and writes each request to an output
 * topic, exactly once. Prints one line of JSON.
 *
 * <p>Arguments: bootstrap servers, input topic, output topic, records to expect, folder, threads.
 */
public final class Projection {
    static final String QUEUES = "queues";
    static final AtomicLong seen = new AtomicLong();

    static final class Numbering implements Processor<byte[], byte[], byte[], byte[]> {
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<byte[], Long> queues;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            queues = context.getStateStore(QUEUES);
        }

        @Override
        public void process(Record<byte[], byte[]> request) {
            Long last = queues.get(request.key());
            long number = last == null ? 1 : last + 1;
            queues.put(request.key(), number);
            context.forward(request);
            seen.incrementAndGet();
        }
    }

    static Topology topology(String in, String out) {
        var bytes = Serdes.ByteArray();
        return new Topology()
            .addSource("in", bytes.deserializer(), bytes.deserializer(), in)
            .addProcessor("numbering", Numbering::new, "in")
            .addStateStore(Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(QUEUES), bytes, Serdes.Long())
                .withCachingEnabled(), "numbering")
            .addSink("out", out, bytes.serializer(), bytes.serializer(), "numbering");
    }

    static Properties properties(String[] a) {
        Properties p = new Properties();
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, "streams-" + a[1]);
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, a[0]);
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, a[5]);
        p.put(StreamsConfig.STATE_DIR_CONFIG, a[4]);
        p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, "-1");
        p.put("auto.offset.reset", "earliest");
        p.put("producer.linger.ms", "5");
        p.put("producer.batch.size", "131072");
        p.put("restore.consumer.max.poll.records", "10000");
        p.put("restore.consumer.fetch.min.bytes", "1");
        return p;
    }

    static double seconds(long since) {
        return (System.nanoTime() - since) / 1e9;
    }

    public static void main(String[] a) throws Exception {
        long expected = Long.parseLong(a[3]);
        String group = "streams-" + a[1];
        double first = 0, committed = 0;
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", a[0]))) {
            KafkaStreams streams = new KafkaStreams(topology(a[1], a[2]), properties(a));
            long begun = System.nanoTime();
            streams.start();
            while (committed == 0 && seconds(begun) < 200) {
                Thread.sleep(10);
                if (first == 0 && seen.get() > 0) first = seconds(begun);
                if (seen.get() < expected) continue;
                long sum = 0;
                for (var offset : admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().values()) {
                    if (offset != null) sum += offset.offset();
                }
                if (sum >= expected) committed = seconds(begun);
            }
            streams.close();
        }
        // From zero again: what a new machine would do.
        delete(new File(a[4]));
        AtomicLong restored = new AtomicLong();
        CountDownLatch running = new CountDownLatch(1);
        KafkaStreams again = new KafkaStreams(topology(a[1], a[2]), properties(a));
        again.setGlobalStateRestoreListener(new StateRestoreListener() {
            public void onRestoreStart(TopicPartition p, String store, long from, long to) {}
            public void onBatchRestored(TopicPartition p, String store, long to, long count) { restored.addAndGet(count); }
            public void onRestoreEnd(TopicPartition p, String store, long total) {}
        });
        again.setStateListener((now, before) -> { if (now == KafkaStreams.State.RUNNING) running.countDown(); });
        long begun = System.nanoTime();
        again.start();
        boolean complete = running.await(200, TimeUnit.SECONDS);
        double restoreSeconds = seconds(begun);
        long keys = 0, sum = 0;
        if (complete) {
            var byQueue = again.store(StoreQueryParameters.fromNameAndType(QUEUES, QueryableStoreTypes.<byte[], Long>keyValueStore()));
            try (var all = byQueue.all()) { while (all.hasNext()) { sum += all.next().value; keys++; } }
        }
        again.close();
        System.out.printf("{\"first_s\":%.3f,\"committed_s\":%.3f,\"restore_s\":%.3f,\"restored\":%d,\"keys\":%d,\"sum\":%d}%n",
            first, committed, restoreSeconds, restored.get(), keys, sum);
        System.exit(0);
    }

    static void delete(File file) {
        File[] inside = file.listFiles();
        if (inside != null) for (File one : inside) delete(one);
        file.delete();
    }
}

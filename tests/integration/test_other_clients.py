"""One smoke test for each client of another language: topics, codecs, a group, commit and resume, times.

Clients come from npm, Go's proxy and Maven (``tests/fetched.py``), where Node, Go and Java are there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.depth import in_full
from tests.fetched import go_program, java, maven_jars, node_modules
from tests.integration.conftest import ServeProcess
from tests.integration.kafka_clients import serving, unique
from tests.patience import HANG_S

pytestmark = pytest.mark.slow

KAFKAJS = "2.2.4"
FRANZ_GO = "v1.22.3"
SARAMA = "v1.61.1"
JAVA_CLIENTS = ("4.4.0", *in_full("3.9.1", "3.6.2"))
RECORDS = 500


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(tmp_path_factory.mktemp("others")) as broker:
        yield broker


@pytest.fixture
def lines(log_lines: list[str], tmp_path: Path) -> Path:
    """Real text for the programs to send, a record a line."""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(log_lines[:RECORDS]) + "\n", encoding="utf-8")
    return path


def run(command: list[str], cwd: Path, **environment: str) -> str:
    """Run a client program to its good end; what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


# -- KafkaJS ---------------------------------------------------------------------------------------------------

_KAFKAJS = """
const { Kafka, CompressionTypes, logLevel } = require("kafkajs");
const assert = require("assert");
const lines = require("fs").readFileSync(process.argv[4], "utf8").trimEnd().split("\\n");
(async () => {
  const [, , broker, topic] = process.argv;
  const kafka = new Kafka({ clientId: "smoke", brokers: [broker], logLevel: logLevel.ERROR });
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic, numPartitions: 3 }] });
  for (const [compression, idempotent] of [[CompressionTypes.None, false], [CompressionTypes.GZIP, true]]) {
    const producer = kafka.producer({ idempotent });
    await producer.connect();
    const messages = lines.map((line, at) => ({ key: String(at), value: line, headers: { at: String(at) } }));
    await producer.send({ topic, compression, messages, acks: -1 });
    await producer.disconnect();
  }
  const wanted = lines.map((line, at) => `${at} ${line}`);
  const all = [...wanted, ...wanted].sort();
  const read = async (expected) => {
    const found = [];
    const consumer = kafka.consumer({ groupId: topic });
    await consumer.connect();
    await consumer.subscribe({ topic, fromBeginning: true });
    await new Promise((resolve, reject) => {
      setTimeout(() => reject(new Error(`got ${found.length} of ${expected}`)), 300000).unref();
      consumer.run({ eachMessage: async ({ message }) => {
        assert.equal(message.headers.at.toString(), message.key.toString());
        found.push(`${message.key} ${message.value}`);
        if (found.length === expected) resolve();
      } }).catch(reject);
    });
    await consumer.stop();  // commits
    await consumer.disconnect();
    return found;
  };
  assert.deepEqual((await read(all.length)).sort(), all);
  const producer = kafka.producer();
  await producer.connect();
  await producer.send({ topic, messages: [{ key: "x", value: "resumed", headers: { at: "x" } }] });
  await producer.disconnect();
  assert.deepEqual(await read(1), ["x resumed"]);
  const offsets = await admin.fetchTopicOffsets(topic);
  assert.equal(offsets.map((one) => Number(one.high)).reduce((a, b) => a + b), all.length + 1);
  const { groups } = await admin.describeGroups([topic]);
  assert.equal(groups[0].state, "Empty");
  await admin.deleteGroups([topic]);
  await admin.deleteTopics({ topics: [topic] });
  assert(!(await admin.listTopics()).includes(topic));
  await admin.disconnect();
  console.log("all is well");
})().catch((error) => { console.error(error); process.exit(1); });
"""


def test_kafkajs(shared: ServeProcess, tmp_path: Path, lines: Path) -> None:
    modules = node_modules(f"kafkajs@{KAFKAJS}")
    (tmp_path / "smoke.js").write_text(_KAFKAJS)
    command = ["node", "smoke.js", shared.bootstrap_servers, unique("kafkajs"), str(lines)]
    environment = {"KAFKAJS_NO_PARTITIONER_WARNING": "1", "NODE_PATH": str(modules)}
    assert "all is well" in run(command, tmp_path, **environment)


# -- Go --------------------------------------------------------------------------------------------------------

_FRANZ_GO = """
package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func client(options ...kgo.Opt) *kgo.Client {
	made, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(os.Args[1])}, options...)...)
	must(err)
	return made
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Second)
	defer cancel()
	topic := os.Args[2]
	text, err := os.ReadFile(os.Args[3])
	must(err)
	lines := strings.Split(strings.TrimRight(string(text), "\\n"), "\\n")

	admin := client()
	create := kmsg.NewPtrCreateTopicsRequest()
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = topic, 3, 1
	create.Topics = append(create.Topics, one)
	created, err := create.RequestWith(ctx, admin)
	must(err)
	must(kerr.ErrorForCode(created.Topics[0].ErrorCode))

	var wanted []string
	for _, codec := range []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(),
		kgo.ZstdCompression(),
	} {
		producer := client(kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec))
		var records []*kgo.Record
		for at, line := range lines {
			records = append(records, &kgo.Record{Key: []byte(fmt.Sprint(at)), Value: []byte(line)})
			wanted = append(wanted, line)
		}
		must(producer.ProduceSync(ctx, records...).FirstErr())
		producer.Close()
	}
	sort.Strings(wanted)

	read := func(count int) []string {
		consumer := client(kgo.ConsumerGroup(topic), kgo.ConsumeTopics(topic),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		defer consumer.Close()
		var found []string
		for len(found) < count {
			fetches := consumer.PollFetches(ctx)
			must(fetches.Err0())
			must(ctx.Err())
			fetches.EachRecord(func(record *kgo.Record) { found = append(found, string(record.Value)) })
		}
		must(consumer.CommitUncommittedOffsets(ctx))
		return found
	}
	found := read(len(wanted))
	sort.Strings(found)
	if strings.Join(found, "\\n") != strings.Join(wanted, "\\n") {
		panic("what was read is not what was written")
	}
	producer := client(kgo.DefaultProduceTopic(topic))
	must(producer.ProduceSync(ctx, kgo.StringRecord("resumed")).FirstErr())
	producer.Close()
	if rest := read(1); len(rest) != 1 || rest[0] != "resumed" {
		panic(fmt.Sprint(rest))
	}
	admin.Close()
	fmt.Println("all is well")
}
"""

_SARAMA = """
package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

type reader struct {
	count int
	found []string
	stop  context.CancelFunc
}

func (*reader) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (*reader) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (r *reader) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			r.found = append(r.found, string(message.Value))
			session.MarkMessage(message, "")
			if len(r.found) == r.count {
				session.Commit()
				r.stop()
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func main() {
	topic := os.Args[2]
	brokers := []string{os.Args[1]}
	text, err := os.ReadFile(os.Args[3])
	must(err)
	lines := strings.Split(strings.TrimRight(string(text), "\\n"), "\\n")
	settings := func() *sarama.Config {
		config := sarama.NewConfig()
		config.Producer.Return.Successes = true
		config.Consumer.Offsets.Initial = sarama.OffsetOldest
		return config
	}
	admin, err := sarama.NewClusterAdmin(brokers, settings())
	must(err)
	must(admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false))
	var wanted []string
	send := func(codec sarama.CompressionCodec, idempotent bool, values ...string) {
		config := settings()
		config.Producer.Compression = codec
		if idempotent {
			config.Producer.Idempotent, config.Net.MaxOpenRequests = true, 1
			config.Producer.RequiredAcks = sarama.WaitForAll
		}
		producer, err := sarama.NewSyncProducer(brokers, config)
		must(err)
		var messages []*sarama.ProducerMessage
		for _, value := range values {
			messages = append(messages, &sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)})
		}
		must(producer.SendMessages(messages))
		must(producer.Close())
	}
	for at, codec := range []sarama.CompressionCodec{
		sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4,
		sarama.CompressionZSTD,
	} {
		send(codec, at%2 == 0, lines...)
		wanted = append(wanted, lines...)
	}
	sort.Strings(wanted)
	read := func(count int) []string {
		group, err := sarama.NewConsumerGroup(brokers, topic, settings())
		must(err)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Second)
		defer cancel()
		r := &reader{count: count, stop: cancel}
		for ctx.Err() == nil {
			must(group.Consume(ctx, []string{topic}, r))
		}
		must(group.Close())
		return r.found
	}
	found := read(len(wanted))
	sort.Strings(found)
	if strings.Join(found, "\\n") != strings.Join(wanted, "\\n") {
		panic(fmt.Sprintf("read %d, wrote %d", len(found), len(wanted)))
	}
	send(sarama.CompressionNone, true, "resumed")
	if rest := read(1); len(rest) != 1 || rest[0] != "resumed" {
		panic(fmt.Sprint(rest))
	}
	must(admin.DeleteTopic(topic))
	fmt.Println("all is well")
}
"""


@pytest.mark.parametrize(
    ("module", "version", "source"),
    [("github.com/twmb/franz-go", FRANZ_GO, _FRANZ_GO), ("github.com/IBM/sarama", SARAMA, _SARAMA)],
    ids=["franz-go", "sarama"],
)
def test_go(
    shared: ServeProcess, tmp_path: Path, lines: Path, module: str, version: str, source: str
) -> None:
    program = go_program(module, version, source)
    command = [str(program), shared.bootstrap_servers, unique("go"), str(lines)]
    assert "all is well" in run(command, tmp_path)


# -- Java ------------------------------------------------------------------------------------------------------

_JAVA = """
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.*;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.quota.*;
import org.apache.kafka.common.serialization.*;

public class Smoke {
  static String broker, topic;

  static Properties settings(String... more) {
    Properties found = new Properties();
    found.put("bootstrap.servers", broker);
    for (int at = 0; at < more.length; at += 2) found.put(more[at], more[at + 1]);
    return found;
  }

  static void check(boolean holds, Object what) {
    if (!holds) throw new AssertionError(String.valueOf(what));
  }

  static void fails(Class<?> kind, KafkaFuture<?> future) throws Exception {
    try {
      future.get();
    } catch (ExecutionException error) {
      check(kind.isInstance(error.getCause()), error);
      return;
    }
    check(false, kind);
  }

  static void send(String codec, List<String> values, long timestamp) throws Exception {
    try (var producer = new KafkaProducer<>(settings("compression.type", codec, "linger.ms", "50"),
        new StringSerializer(), new StringSerializer())) {
      var waiting = new ArrayList<Future<RecordMetadata>>();
      for (int at = 0; at < values.size(); at++)
        waiting.add(producer.send(new ProducerRecord<>(topic, null, timestamp + at, "k" + at, values.get(at))));
      for (var one : waiting) one.get(300, TimeUnit.SECONDS);
    }
  }

  static List<String> read(int count) {
    var found = new ArrayList<String>();
    long end = System.nanoTime() + 300_000_000_000L;
    try (var consumer = new KafkaConsumer<>(settings("group.id", topic, "auto.offset.reset", "earliest"),
        new StringDeserializer(), new StringDeserializer())) {
      consumer.subscribe(List.of(topic));
      while (found.size() < count) {
        check(System.nanoTime() < end, "got " + found.size() + " of " + count);
        for (var record : consumer.poll(Duration.ofMillis(500))) found.add(record.value());
      }
      consumer.commitSync();
    }
    return found;
  }

  public static void main(String[] arguments) throws Exception {
    broker = arguments[0];
    topic = arguments[1];
    var lines = Files.readAllLines(Path.of(arguments[2]));
    try (var admin = Admin.create(settings())) {
      var made = admin.createTopics(List.of(new NewTopic(topic, 3, (short) 1)));
      made.all().get();
      check(made.numPartitions(topic).get() == 3, "partitions");
      check(made.config(topic).get().get("retention.ms").value().equals("604800000"), "configs");
      var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
      check(described.partitions().size() == 3, described);
      check(admin.describeCluster().clusterId().get() != null, "cluster id");
      admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(4))).all().get();
      var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
      admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(
          new ConfigEntry("retention.ms", "1000000000"), AlterConfigOp.OpType.SET)))).all().get();
      var config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
      check(config.get("retention.ms").value().equals("1000000000"), config);

      var wanted = new ArrayList<String>();
      long start = System.currentTimeMillis() - 1_000_000;
      for (var codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
        send(codec, lines, start);
        wanted.addAll(lines);
      }
      var found = read(wanted.size());
      Collections.sort(found);
      Collections.sort(wanted);
      check(found.equals(wanted), "what was read is not what was written");
      send("none", List.of("resumed"), start);
      check(read(1).equals(List.of("resumed")), "resumed");

      for (var type : List.of("uncompressed", "gzip", "snappy", "lz4", "zstd")) {
        admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(
            new ConfigEntry("compression.type", type), AlterConfigOp.OpType.SET)))).all().get();
        for (var codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) send(codec, lines, start);
        var again = read(5 * lines.size());
        Collections.sort(again);
        check(again.equals(wanted), "recompressed to " + type);
      }

      var first = new TopicPartition(topic, 0);
      var all = new HashSet<TopicPartition>();
      for (int at = 0; at < 4; at++) all.add(new TopicPartition(topic, at));
      int node = admin.describeCluster().nodes().get().iterator().next().id();
      var place = admin.describeLogDirs(List.of(node)).allDescriptions().get().get(node).values().iterator().next();
      check(place.error() == null && place.replicaInfos().keySet().containsAll(all), place);
      check(all.stream().mapToLong(one -> place.replicaInfos().get(one).size()).sum() > 10_000, place);
      check(place.totalBytes().getAsLong() >= place.usableBytes().getAsLong(), place);
      var elected = admin.electLeaders(ElectionType.PREFERRED, all).partitions().get();
      check(elected.keySet().equals(all), elected);
      for (var one : elected.values()) check(one.get() instanceof ElectionNotNeededException, elected);
      check(admin.electLeaders(ElectionType.UNCLEAN, null).partitions().get().isEmpty(), "nothing to elect");
      check(admin.listPartitionReassignments().reassignments().get().isEmpty(), "reassignments");
      admin.alterPartitionReassignments(Map.of(first, Optional.of(new NewPartitionReassignment(List.of(node)))))
          .all().get();
      fails(InvalidReplicaAssignmentException.class, admin.alterPartitionReassignments(
          Map.of(first, Optional.of(new NewPartitionReassignment(List.of(node, node + 1))))).all());
      fails(NoReassignmentInProgressException.class, admin.alterPartitionReassignments(
          Map.of(first, Optional.empty())).all());
      var producers = admin.describeProducers(all).all().get();
      check(producers.keySet().equals(all), producers);
      for (var one : producers.get(first).activeProducers())
        check(one.producerEpoch() == 0 && one.lastSequence() >= 0 && one.coordinatorEpoch().isEmpty(), one);
      check(!producers.get(first).activeProducers().isEmpty(), producers);
      check(admin.describeClientQuotas(ClientQuotaFilter.all()).entities().get().isEmpty(), "quotas");
      check(admin.describeUserScramCredentials().all().get().isEmpty(), "users");
      check(admin.listTransactions().all().get().isEmpty(), "transactions");
      fails(TransactionalIdNotFoundException.class, admin.describeTransactions(List.of(topic)).all());

      try (var consumer = new KafkaConsumer<>(settings(), new StringDeserializer(), new StringDeserializer())) {
        var at = consumer.offsetsForTimes(Map.of(first, start + 100)).get(first);
        check(at != null && at.timestamp() >= start + 100, at);
        long before = at.offset();
        consumer.assign(List.of(first));
        consumer.seek(first, before);
        var record = consumer.poll(Duration.ofSeconds(300)).iterator().next();
        check(record.offset() == before && record.timestamp() == at.timestamp(), record);
      }
      var latest = admin.listOffsets(Map.of(first, OffsetSpec.maxTimestamp())).partitionResult(first).get();
      check(latest.offset() >= 0, latest);
      check(admin.listConsumerGroups().all().get().stream().anyMatch(one -> one.groupId().equals(topic)), "listed");
      var group = admin.describeConsumerGroups(List.of(topic)).all().get().get(topic);
      check(group.members().isEmpty(), group);
      var offsets = admin.listConsumerGroupOffsets(topic).partitionsToOffsetAndMetadata().get();
      check(offsets.values().stream().mapToLong(one -> one.offset()).sum() == 6 * wanted.size() + 1, offsets);
      admin.deleteRecords(Map.of(first, RecordsToDelete.beforeOffset(5))).all().get();
      check(admin.listOffsets(Map.of(first, OffsetSpec.earliest())).partitionResult(first).get().offset() == 5, "5");
      admin.deleteConsumerGroups(List.of(topic)).all().get();
      admin.deleteTopics(List.of(topic)).all().get();
      check(!admin.listTopics().names().get().contains(topic), "deleted");
    }
    System.out.println("all is well");
  }
}
"""


@pytest.mark.parametrize("version", JAVA_CLIENTS)
def test_java(shared: ServeProcess, tmp_path: Path, lines: Path, version: str) -> None:
    jars = maven_jars(f"org.apache.kafka:kafka-clients:{version}")
    (tmp_path / "Smoke.java").write_text(_JAVA)
    command = [*java(), "-cp", ":".join(map(str, jars)), "Smoke.java"]
    printed = run([*command, shared.bootstrap_servers, unique("java"), str(lines)], tmp_path)
    assert "all is well" in printed

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

/** Sends lines of "key TAB value" from standard input, as a Java application does; nothing of ours is in it. */
public class JavaProducer {
    public static void main(String[] arguments) throws Exception {
        List<String> lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8)).lines().toList();
        String[] codecs = arguments[2].split(",");
        for (int i = 0; i < codecs.length; i++) {
            List<String> share = lines.subList(lines.size() * i / codecs.length, lines.size() * (i + 1) / codecs.length);
            send(share, arguments[0], arguments[1], codecs[i], arguments[3], arguments[4]);
        }
        System.out.println("sent");
    }

    private static void send(
            List<String> lines, String servers, String topic, String codec, String contentType, String transaction) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", servers);
        settings.put("key.serializer", StringSerializer.class.getName());
        settings.put("value.serializer", StringSerializer.class.getName());
        settings.put("compression.type", codec);
        settings.put("linger.ms", "50");
        boolean transactional = !transaction.equals("none");
        if (transactional) {
            settings.put("transactional.id", topic + "-java");
        }
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings)) {
            if (transactional) {
                producer.initTransactions();
                producer.beginTransaction();
            }
            for (String line : lines) {
                String[] parts = line.split("\t", 2);
                ProducerRecord<String, String> record = new ProducerRecord<>(topic, parts[0], parts[1]);
                if (!contentType.equals("none")) {
                    record.headers().add("Content-Type", contentType.getBytes(StandardCharsets.UTF_8));
                }
                producer.send(record);
            }
            producer.flush();
            if (transaction.equals("commit")) {
                producer.commitTransaction();
            } else if (transactional) {
                producer.abortTransaction();
            }
        }
    }
}

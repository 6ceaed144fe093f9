// The JDK's own HttpClient with its defaults: it offers `Upgrade: h2c` with the first request of a connection.
// Run: java JavaClient.java FLOW=URL...    Each flow prints one line: FLOW, status, HTTP version, body, by tabs.
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.stream.Collectors;
import java.util.stream.Stream;

public class JavaClient {
    static final String CHAT = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"max_tokens\": 4";
    static final String INPUT = "{\"input\": \"Hello world\"}";
    static final String BOUNDARY = "----java";

    static HttpRequest.Builder to(String url) {
        return HttpRequest.newBuilder(URI.create(url));
    }

    static HttpRequest post(String url, String type, BodyPublisher body, boolean expectContinue) {
        return to(url).header("Content-Type", type).expectContinue(expectContinue).POST(body).build();
    }

    static HttpRequest json(String url, String body) {
        return post(url, "application/json", BodyPublishers.ofString(body), false);
    }

    /** Half a second of silence as a WAV file of 16 kHz, in a form. */
    static byte[] form() throws Exception {
        int samples = 8000;
        ByteArrayOutputStream form = new ByteArrayOutputStream();
        form.write(("--" + BOUNDARY + "\r\nContent-Disposition: form-data; name=\"response_format\"\r\n\r\njson\r\n"
            + "--" + BOUNDARY + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n"
            + "Content-Type: audio/wav\r\n\r\n").getBytes(StandardCharsets.UTF_8));
        var head = java.nio.ByteBuffer.allocate(44).order(java.nio.ByteOrder.LITTLE_ENDIAN);
        head.put("RIFF".getBytes()).putInt(36 + 2 * samples).put("WAVEfmt ".getBytes()).putInt(16);
        head.putShort((short) 1).putShort((short) 1).putInt(16000).putInt(32000).putShort((short) 2).putShort((short) 16);
        head.put("data".getBytes()).putInt(2 * samples);
        form.write(head.array());
        form.write(new byte[2 * samples]);
        form.write(("\r\n--" + BOUNDARY + "--\r\n").getBytes(StandardCharsets.UTF_8));
        return form.toByteArray();
    }

    static HttpRequest request(String flow, String url) throws Exception {
        String type = "multipart/form-data; boundary=" + BOUNDARY;
        return switch (flow) {
            case "head" -> to(url + "/health").method("HEAD", BodyPublishers.noBody()).build();
            case "models" -> to(url + "/v1/models").build();
            case "chat" -> json(url + "/v1/chat/completions", CHAT + "}");
            case "stream" -> json(url + "/v1/chat/completions", CHAT + ", \"stream\": true}");
            case "embeddings" -> json(url + "/v1/embeddings", INPUT);
            case "chunked" -> post(url + "/v1/embeddings", "application/json",
                BodyPublishers.fromPublisher(BodyPublishers.ofString(INPUT)), false);
            case "transcription" -> post(url + "/v1/audio/transcriptions", type, BodyPublishers.ofByteArray(form()), false);
            case "expect" -> post(url + "/v1/audio/transcriptions", type, BodyPublishers.ofByteArray(form()), true);
            case "paths-info" -> json(url + "/api/models/test/small/paths-info/main", "{\"paths\": [\"config.json\"]}");
            case "download" -> to(url + "/test/small/resolve/main/model.safetensors").build();
            default -> throw new IllegalArgumentException(flow);
        };
    }

    /** The body as text: the lines of a stream as they arrive, the digest of a download. */
    static String send(HttpClient client, String flow, HttpRequest request) throws Exception {
        HttpResponse<?> response;
        String body;
        if (flow.equals("stream")) {
            HttpResponse<Stream<String>> lines = client.send(request, BodyHandlers.ofLines());
            body = lines.body().collect(Collectors.joining("\\n"));
            response = lines;
        } else {
            HttpResponse<byte[]> bytes = client.send(request, BodyHandlers.ofByteArray());
            body = flow.equals("download")
                ? HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes.body()))
                : new String(bytes.body(), StandardCharsets.UTF_8).replace("\n", "\\n");
            response = bytes;
        }
        return String.join("\t", flow, "" + response.statusCode(), "" + response.version(), body);
    }

    public static void main(String[] flows) throws Exception {
        for (String flow : flows) {
            String name = flow.substring(0, flow.indexOf('='));
            // A client for each flow: the upgrade is offered on a new connection.
            HttpClient client = HttpClient.newBuilder().followRedirects(HttpClient.Redirect.NORMAL).build();
            System.out.println(send(client, name, request(name, flow.substring(name.length() + 1))));
        }
    }
}

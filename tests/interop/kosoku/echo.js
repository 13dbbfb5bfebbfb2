// A WebSocket echo server on a TCP port of loopback and on a Unix socket: node echo.js PORT PATH.
const http = require("http");
const { WebSocketServer } = require("ws");

const [port, path] = process.argv.slice(2);
for (const address of [[path], [Number(port), "127.0.0.1"]]) {
  const server = http.createServer();
  new WebSocketServer({ server, maxPayload: 0, perMessageDeflate: false }).on("connection", (client) => {
    client.on("error", () => {});
    client.on("message", (data, isBinary) => client.send(data, { binary: isBinary }));
  });
  server.listen(...address);
}

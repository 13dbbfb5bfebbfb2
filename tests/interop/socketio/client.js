// Opens sessions of Socket.IO by each transport and asks who serves them. Every request is a connection of its own, so
// that nothing sticks by keep-alive. Fails unless each session stays with one server and every server has some.
const http = require('http');
const { io } = require('socket.io-client');

const url = `http://127.0.0.1:${process.argv[2]}`;
const SESSIONS = 30;
const SERVERS = 3;
const PATIENCE_MS = 10_000;

const ask = (socket) => new Promise((resolve) => socket.emit('who', resolve));

function session(transports) {
  return new Promise((resolve, reject) => {
    const agent = new http.Agent({ keepAlive: false });
    const socket = io(url, { transports, reconnection: false, forceNew: true, agent });
    const patience = setTimeout(() => reject(new Error('no answer')), PATIENCE_MS);
    socket.on('connect_error', reject);
    socket.on('disconnect', (reason) => reject(new Error(reason)));
    socket.on('connect', async () => {
      const names = new Set();
      for (let round = 0; round < 4; round += 1) names.add(await ask(socket));
      const { engine } = socket.io;
      if (transports.includes('websocket') && engine.transport.name !== 'websocket') {
        await new Promise((upgraded) => engine.once('upgrade', upgraded));
      }
      names.add(await ask(socket));
      clearTimeout(patience);
      socket.off('disconnect');
      socket.disconnect();
      if (names.size > 1) reject(new Error(`served by ${[...names]}`));
      resolve([...names][0]);
    });
  });
}

(async () => {
  for (const transports of [['polling'], ['polling', 'websocket'], ['websocket']]) {
    const served = {};
    for (let count = 0; count < SESSIONS; count += 1) {
      const name = await session(transports);
      served[name] = (served[name] || 0) + 1;
    }
    console.log(transports.join('+'), served);
    if (Object.keys(served).length < SERVERS) throw new Error('not all servers served');
  }
})().then(() => process.exit(0), (error) => { console.error(String(error)); process.exit(1); });

// In the box: connections to 127.0.0.1:PORT <-> frames on stdin and stdout. It decides nothing; the host does.
// Arguments: RUN PORT MOST. Node 12 and newer. gateway/frames.py has the frames.
'use strict';
const net = require('net');
const [run, port, most] = process.argv.slice(-3);
const OPEN = 1, DATA = 2, EOF = 3, RESET = 4, WINDOW = 5, CONNECT = 6, LONGEST = 32 * 1024, CREDIT = 256 * 1024;
const HOSTS = 2 ** 31;  // the first number of a channel that the host opens
const NOTHING = Buffer.alloc(0);
const clients = new Map();
const waiting = [];  // connections for which there is no channel yet: node accepts them all
const MOST_WAITING = 1000;
let last = 0, accepted = 0, inbox = NOTHING, full = false;

function frame(kind, number, data) {
  const head = Buffer.alloc(8);
  head[0] = kind;
  head.writeUInt16BE(data ? data.length : 0, 2);
  head.writeUInt32BE(number, 4);
  if (!process.stdout.write(data ? Buffer.concat([head, data]) : head) && !full) {
    full = true;  // a slow host is waited for
    for (const client of clients.values()) client.socket.pause();
  }
}

// A read may bring more than there is credit for: the rest is kept here, and no more is read.
function flow(client) {
  while (!full && client.read.length && client.credit > 0) {
    const part = client.read.subarray(0, Math.min(LONGEST, client.credit));
    client.read = client.read.subarray(part.length);
    client.credit -= part.length;
    frame(DATA, client.number, part);
  }
  if (full || client.credit <= 0) client.socket.pause();
  else if (!client.atEnd) client.socket.resume();
  if (client.atEnd && !client.readAll && !client.read.length) {
    client.readAll = true;
    frame(EOF, client.number);
    settle(client);
  }
}

function settle(client) {
  if (!client.readAll || !client.saidAll || !clients.delete(client.number)) return;
  client.socket.end();
  next(client);
}

function drop(client, tell) {
  if (!clients.delete(client.number)) return;
  if (tell) frame(RESET, client.number);
  if (tell || !client.saidAll) hangUp(client.socket);
  else client.socket.destroy();  // it was told all, and may still be reading it
  next(client);
}

// Without a word of farewell, where this node can.
function hangUp(socket) {
  if (socket.resetAndDestroy) socket.resetAndDestroy();
  else socket.destroy();
}

function taken(client, size) {
  client.taken += size;
  if (client.taken < CREDIT / 4 || !clients.has(client.number)) return;
  const data = Buffer.alloc(4);
  data.writeUInt32BE(client.taken);
  client.taken = 0;
  frame(WINDOW, client.number, data);
}

function take(client, kind, data) {
  if (kind === DATA && !client.lastWord) client.socket.write(data, () => taken(client, data.length));
  else if (kind === EOF) {
    client.lastWord = true;
    client.socket.end(() => { client.saidAll = true; settle(client); });
  } else if (kind === RESET) drop(client, false);
  else if (kind === WINDOW) { client.credit += data.readUInt32BE(0); flow(client); }
}

function next(gone) {
  if (gone.number < HOSTS) accepted--;
  while (waiting.length && accepted < +most) {
    const socket = waiting.shift();
    if (!socket.destroyed) accept(socket);
  }
}

function accept(socket) {
  accepted++;
  frame(OPEN, ++last);
  carry(socket, last);
}

function carry(socket, number) {
  const client = {
    socket, number, credit: CREDIT, taken: 0, read: NOTHING,
    atEnd: false, readAll: false, lastWord: false, saidAll: false,
  };
  clients.set(client.number, client);
  socket.on('data', data => {
    client.read = client.read.length ? Buffer.concat([client.read, data]) : data;
    flow(client);
  });
  socket.on('end', () => { client.atEnd = true; flow(client); });
  socket.on('error', () => drop(client, true));
  socket.on('close', () => drop(client, true));
  flow(client);
}

const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, socket => {
  socket.setNoDelay(true);
  socket.on('error', () => {});
  if (accepted < +most) accept(socket);
  else if (waiting.length < MOST_WAITING) waiting.push(socket);
  else hangUp(socket);
});
server.on('error', error => {
  process.stderr.write(`container-runner: no-port ${run} ${error.code}\n`, () => process.exit(1));
});
process.on('SIGINT', () => {});
process.stdout.on('error', () => process.exit(0));
process.stdout.on('drain', () => { full = false; for (const client of clients.values()) flow(client); });
process.stdin.on('end', () => process.exit(0));  // the host is gone
process.stdin.on('error', () => process.exit(0));
process.stdin.on('data', data => {
  inbox = inbox.length ? Buffer.concat([inbox, data]) : data;
  let at = 0;
  while (inbox.length - at >= 8) {
    const size = inbox.readUInt16BE(at + 2);
    if (inbox.length - at < 8 + size) break;
    const number = inbox.readUInt32BE(at + 4), client = clients.get(number);
    if (inbox[at] === CONNECT) {  // the host wants to speak to who listens in the box
      const to = { host: '127.0.0.1', port: inbox.readUInt16BE(at + 8), allowHalfOpen: true };
      carry(net.connect(to).setNoDelay(true), number);
    } else if (client) take(client, inbox[at], inbox.subarray(at + 8, at + 8 + size));
    at += 8 + size;
  }
  inbox = inbox.subarray(at);
});
server.listen(+port, '127.0.0.1', 128, () => process.stderr.write(`container-runner: forwarding ${run}\n`));

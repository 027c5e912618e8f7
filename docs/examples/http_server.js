// An HTTP server that embeds images and texts: node http_server.js <model> [port]
//
//   curl --data-binary @cat.jpg localhost:3000/image
//   curl --data 'a photo of a cat' localhost:3000/text
//   curl localhost:3000/stats
'use strict';

const { once } = require('node:events');
const { createServer } = require('node:http');
const { Embedder, SiglipError } = require('siglip2');

const MAX_BODY = 32 * 1024 * 1024;

// What the client did wrong; everything else is ours.
const STATUS = {
  ERR_IMAGE: 422,
  ERR_ARGUMENT: 400,
  ERR_BUSY: 503,
  ERR_DISPOSED: 503,
};

class BodyTooLarge extends Error {}

async function bodyOf(request) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > MAX_BODY) throw new BodyTooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function send(response, status, value) {
  response.statusCode = status;
  response.setHeader('content-type', 'application/json');
  if (status === 503) response.setHeader('retry-after', '1');
  if (status === 413) response.setHeader('connection', 'close');
  response.end(JSON.stringify(value));
}

async function answer(embedder, request, response) {
  // A client that hangs up takes its input out of the queue.
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  const { signal } = gone;
  try {
    const route = `${request.method} ${request.url}`;
    if (route === 'GET /stats') send(response, 200, embedder.stats());
    else if (route === 'POST /image') {
      // Bytes only: a string would be taken for a path on this machine.
      const embedding = await embedder.embedImage(await bodyOf(request), { signal });
      send(response, 200, { embedding: [...embedding] });
    } else if (route === 'POST /text') {
      const text = (await bodyOf(request)).toString('utf8');
      const embedding = await embedder.embedText(text, { signal });
      send(response, 200, { embedding: [...embedding] });
    } else send(response, 404, { error: 'POST /image, POST /text or GET /stats' });
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof BodyTooLarge) {
      send(response, 413, { error: `body must have at most ${String(MAX_BODY)} bytes` });
      return;
    }
    const known = error instanceof SiglipError;
    if (!known) console.error(error);
    send(response, (known && STATUS[error.code]) || 500, {
      error: known ? error.message : 'failed',
      code: known ? error.code : undefined,
    });
  }
}

async function main() {
  const [model, port = '3000'] = process.argv.slice(2);
  const embedder = await Embedder.load(model, { whenFull: 'reject', maxQueue: 256 });
  // The first call of a kind compiles its program; better now than under a client's eyes.
  await embedder.embedText('warm up');
  const server = createServer((request, response) => void answer(embedder, request, response));
  server.listen(Number(port));
  await once(server, 'listening');
  console.log(`http://localhost:${String(server.address().port)}`);

  await Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  // No more connections; what was accepted is answered; then the model goes, and with it the process.
  const closed = once(server, 'close');
  server.close();
  await embedder.drain();
  server.closeIdleConnections();
  await closed;
  await embedder.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});

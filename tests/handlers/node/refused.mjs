// A client on Node's own keep-alive agent: a request with a token that is no good, then one on the same connection.
// usage: node refused.mjs URL ROUNDS; prints what became of the second requests, and how many connections were made.
import http from "node:http";

const [base, rounds] = [process.argv[2], Number(process.argv[3])];
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const sockets = new Set();

function ask(method, path, headers, body) {
  return new Promise((resolve) => {
    const request = http.request(base + path, { method, agent, headers }, (answer) => {
      answer.resume();
      answer.on("end", () => resolve(answer.statusCode));
    });
    request.on("socket", (socket) => sockets.add(socket));
    request.on("error", (error) => resolve(error.code));
    request.end(body);
  });
}

const seen = {};
for (let round = 0; round < rounds; round++) {
  const refused = await ask("GET", "/users/me", { authorization: "Bearer x" });
  const json = { "content-type": "application/json" };
  const next = await ask("POST", "/auth/refresh", json, '{"refresh_token": "00"}');
  const both = `${refused} ${next}`;
  seen[both] = (seen[both] ?? 0) + 1;
}
agent.destroy();
console.log(JSON.stringify({ seen, connections: sockets.size }));

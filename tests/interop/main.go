// Command httpd is a server of Go's net/http, as any program of Go would have it: HTTP/1.1, HTTP/2 with prior knowledge
// and, with -tls, both by ALPN. For the tests of interoperation.
//
// GET /items/file has Range, HEAD and 304 of net/http's own; a body that is sent is counted; /items/page is what a
// browser loads. It says each request in one line of JSON.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// page asks for one sub-resource of each kind, and for one that the policy denies.
const page = `<!doctype html><title>loading</title><link rel="stylesheet" href="/items/style.css">
<script src="/items/app.js" defer></script><img src="/items/image.svg" onload="window.drawn=1">
<p id="result">waiting</p>`

const script = `addEventListener("load", async () => {
  const tell = async (path, options) => { try { return (await fetch(path, options)).status } catch (e) { return 0 } };
  const list = await Promise.all([...Array(8).keys()].map(i => tell("/items/part/" + i)));
  const denied = await tell("/admin");
  const posted = await tell("/items/file", { method: "DELETE" });
  const after = await tell("/items/after");
  const styled = getComputedStyle(document.getElementById("result")).getPropertyValue("color") === "rgb(1, 2, 3)";
  const protocols = new Set(performance.getEntriesByType("resource").map(e => e.nextHopProtocol).filter(p => p));
  document.getElementById("result").textContent =
    JSON.stringify({ list, denied, posted, after, styled, drawn: !!window.drawn, protocols: [...protocols] });
});`

const image = `<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>`

var stdout sync.Mutex

func say(value map[string]any) {
	stdout.Lock()
	defer stdout.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(value)
}

func answer(w http.ResponseWriter, r *http.Request) {
	say(map[string]any{"event": "request", "method": r.Method, "path": r.URL.Path, "proto": r.Proto, "peer": r.RemoteAddr})
	fixed := func(kind, text string) {
		w.Header().Set("Content-Type", kind)
		_, _ = io.WriteString(w, text)
	}
	switch {
	case r.URL.Path == "/items/page":
		fixed("text/html", page)
	case r.URL.Path == "/items/style.css":
		fixed("text/css", "#result { color: rgb(1, 2, 3) }")
	case r.URL.Path == "/items/app.js":
		fixed("text/javascript", script)
	case r.URL.Path == "/items/image.svg":
		fixed("image/svg+xml", image)
	case r.URL.Path == "/items/file":
		w.Header().Set("ETag", `"one"`)
		content := bytes.NewReader([]byte(strings.Repeat("0123456789abcdef", 64*1024)))
		http.ServeContent(w, r, "file.bin", time.Time{}, content)
	default:
		// Read only now: this is when net/http asks for what waits for 100 (Continue).
		count, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			say(map[string]any{"event": "broken", "path": r.URL.Path, "error": err.Error()})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, `{"method":%q,"proto":%q,"peer":%q,"bytes":%d,"chunked":%t}`+"\n",
			r.Method, r.Proto, r.RemoteAddr, count, len(r.TransferEncoding) > 0)
		w.Header().Set("X-Sum", fmt.Sprint(count))
	}
}

// certificate makes a certificate of its own, and the name that browsers know its key by.
func certificate(names []string) (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "interop"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     names,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(public)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, base64.StdEncoding.EncodeToString(sum[:]), nil
}

func run() error {
	listen := flag.String("listen", "[::]:8080", "where to listen")
	names := flag.String("tls", "", "serve TLS for these names, with a certificate of its own")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Handler: http.HandlerFunc(answer), Protocols: &protocols}
	if *names == "" {
		say(map[string]any{"event": "ready"})
		return server.Serve(listener)
	}
	certificate, spki, err := certificate(strings.Split(*names, ","))
	if err != nil {
		return err
	}
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
	say(map[string]any{"event": "ready", "spki": spki})
	return server.ServeTLS(listener, "", "")
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

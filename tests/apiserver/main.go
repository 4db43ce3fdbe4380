// Command kube-apiserver is Kubernetes' own API server, from its modules as they are published.
//
// For tests, on machines where no kube-apiserver is found otherwise: cargo xtask builds it into the cache. Nothing
// here is of this project, and nothing of this project is in here.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
